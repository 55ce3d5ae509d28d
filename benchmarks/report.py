"""How a result is shown: tables on the terminal, tables in Markdown, a file of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from . import sheets
from .sheet import Sheet


def show(result: dict[str, Any]) -> None:
    """Prints every table of the result."""
    for sheet in sheets.all_sheets(result).values():
        show_sheet(sheet)
    say((*sheets.skipped(result), sheets.conditions(result)))


def show_sheet(sheet: Sheet) -> None:
    """Prints one table with its notes and its legend."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for position, column in enumerate(sheet.columns):
        justify: JustifyMethod = "left" if position < sheet.words else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row)
    # A table that is wider than the terminal is better broken by the terminal than cut off.
    width = Console(width=1000).measure(table).maximum
    Console(width=max(width, Console().width)).print(table)
    say((*sheet.notes, sheet.legend))


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
    sheet = sheets.all_sheets(result)[name]
    rules = ["---" if position < sheet.words else "---:" for position in range(len(sheet.columns))]
    rows = [sheet.columns, rules, *sheet.rows]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "".join(f"- {line}\n" for line in sheet.notes)
    parts = (sheets.conditions(result) + ":", table, notes.strip(), sheet.legend)
    return "\n\n".join(filter(None, parts)) + "\n"


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
