"""Prints the tables of results, or renews them in documents.

``python -m fusedopt.benchmarks.documents RESULT.json...`` prints every table in Markdown; with
``--into DOCUMENT.md...`` it replaces what is between lines such as ``<!-- benchmark steps
results/machine.json -->`` and ``<!-- end of benchmark -->``. The path is relative to the document;
the table's name is one of ``fusedopt.benchmarks.reporting.tables``.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from .reporting.report import markdown
from .reporting.tables import all_tables

_BLOCK = re.compile(
    r"(<!-- benchmark (?P<name>\w+) (?P<path>\S+) -->\n).*?(<!-- end of benchmark -->)", re.DOTALL
)


def renewed(document: Path) -> str:
    """The text of a document, with the tables that its results files give.

    Raises:
        FileNotFoundError: a results file that there is not.
        KeyError: a table that the results file does not have.
    """

    def table(block: re.Match[str]) -> str:
        result = json.loads((document.parent / block["path"]).read_text())
        return f"{block[1]}\n{markdown(result, block['name'])}\n{block[4]}"

    return _BLOCK.sub(table, document.read_text())


def main(arguments: list[str]) -> None:
    """Does what the command line says."""
    if arguments[:1] == ["--into"] and arguments[1:]:
        for document in map(Path, arguments[1:]):
            document.write_text(renewed(document))
        return
    if not arguments or arguments[0].startswith("-"):
        sys.exit(
            "usage: python -m fusedopt.benchmarks.documents RESULT.json... | --into DOCUMENT.md..."
        )
    for path in arguments:
        result = json.loads(Path(path).read_text())
        print("\n".join(markdown(result, name) for name in all_tables(result)), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
