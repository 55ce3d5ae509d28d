"""What verification and the tests try: every row with each of its options, and the dtypes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusedopt.checking.rows import DTYPES as DTYPES
from fusedopt.checking.rows import ROWS

if TYPE_CHECKING:
    from fusedopt.checking.rows import Row


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of options."""

    row: Row
    options: dict[str, Any]

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.row.name}({options})"


CASES: tuple[Case, ...] = tuple(Case(row, options) for row in ROWS for options in row.options)
