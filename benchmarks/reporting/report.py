"""How a result is shown: tables on the terminal, tables in Markdown, a file of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table as RichTable

from . import tables
from .table import Table


def show(result: dict[str, Any], aims: bool = False) -> None:
    """Prints every table of the result; that of the aims where it is asked for."""
    for name, table in tables.all_tables(result).items():
        if name not in tables.ASKED_FOR or (aims and name == tables.AIMS):
            show_table(table)
    say((*tables.skipped(result), tables.conditions(result)))


def show_table(table: Table) -> None:
    """Prints one table with its lead, its notes and its legend."""
    say(table.lead)
    shown = RichTable(box=box.SIMPLE_HEAD, padding=0)
    for position, column in enumerate(table.columns):
        justify: JustifyMethod = "left" if position < table.words else "right"
        shown.add_column(column, justify=justify, no_wrap=True)
    for row in table.rows:
        shown.add_row(*row)
    # A table that is wider than the terminal is better broken by the terminal than cut off.
    width = Console(width=1000).measure(shown).maximum
    Console(width=max(width, Console().width)).print(shown)
    say((*table.notes, table.legend))


def say(lines: Iterable[object]) -> None:
    """Prints lines as they are."""
    console = Console()
    for line in lines:
        console.print(str(line), markup=False, highlight=False, soft_wrap=True)


def markdown(result: dict[str, Any], name: str = "steps") -> str:
    """A table of the result in Markdown, under the line that says where it comes from.

    Raises:
        KeyError: the result has no such table.
    """
    table = tables.all_tables(result)[name]
    rules = ["---" if position < table.words else "---:" for position in range(len(table.columns))]
    rows = [table.columns, rules, *table.rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "".join(f"- {line}\n" for line in table.notes)
    parts = (
        " ".join(table.lead),
        tables.conditions(result) + ":",
        lines,
        notes.strip(),
        table.legend,
    )
    return "\n\n".join(filter(None, parts)) + "\n"


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
