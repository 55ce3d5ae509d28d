"""Lists in pages, from where they are kept: the optimizers' rows, and results of the benchmark.

``{{ optimizers }}`` gives the API of every optimizer, and ``{{ rules }}`` a table of their pages,
with what each says of itself in its first lines. ``{{ benchmark steps amd-epyc-2-cores }}`` is a
table of a file in benchmarks/results. In the navigation, the rules' pages follow their index.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.utils.meta import get_data

from fusedopt.benchmarks.reporting.report import markdown as table_of
from fusedopt.checking.rows import ROWS

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

ROOT = Path(__file__).parents[2]
PAGES = {row.name: f"rules/{row.name.lower()}.md" for row in ROWS}
_DIRECTIVE = re.compile(r"^\{\{ (optimizers|rules|benchmark)((?: \S+)*) \}\}$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Enters the pages of the rules into the navigation."""
    for entry in config.nav or ():
        if "Rules" in entry:
            entry["Rules"][1:1] = [{name: page} for name, page in PAGES.items()]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Carries out the directives of a page."""
    kinds = {"optimizers": optimizers, "rules": rules, "benchmark": benchmark}
    return _DIRECTIVE.sub(lambda found: kinds[found[1]](*found[2].split()), markdown)


def optimizers() -> str:
    """The API of every optimizer."""
    return "\n".join(f"::: fusedopt.{row.name}" for row in ROWS)


def rules() -> str:
    """A row for each page in docs/rules."""
    lines = ["| rule | what it does | state per parameter |", "|---|---|---|"]
    for name, page in PAGES.items():
        _, said = get_data((ROOT / "docs" / page).read_text())
        lines.append(f"| [{name}]({Path(page).name}) | {said['summary']} | {said['states']} |")
    return "\n".join(lines)


def benchmark(table: str, results: str) -> str:
    """A table of a results file."""
    path = ROOT / "benchmarks" / "results" / f"{results}.json"
    return table_of(json.loads(path.read_text()), table)
