"""What a table is, and how numbers are written in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        columns: titles.
        rows: as many texts each as there are titles.
        legend: what the columns say.
        words: how many columns, from the left, are words and not numbers.
        notes: lines about single rows.
        lead: lines that are to be read ahead of the table.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    words: int = 2
    notes: Sequence[str] = ()
    lead: Sequence[str] = ()


def is_gpu(result: dict[str, Any]) -> bool:
    """Whether the result was measured on a GPU."""
    return "gpu" in result["machine"]


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: us, ms or s."""
    if seconds < 999.5e-6:
        return f"{three_digits(seconds * 1e6)} us"
    if seconds < 999.5e-3:
        return f"{three_digits(seconds * 1e3)} ms"
    return f"{three_digits(seconds)} s"


def three_digits(value: float) -> str:
    """A number below 1,000 with three digits."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def format_count(value: float) -> str:
    """A count with three digits and k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def spread(summary: dict[str, float]) -> str:
    """Half the distance between the quartiles, as a percentage of the median."""
    half = (summary["upper_quartile"] - summary["lower_quartile"]) / 2
    return f"{100 * half / summary['median']:.1f}%"


def percent(share: dict[str, float]) -> str:
    """The median of a share as a whole percentage."""
    return f"{100 * share['median']:.0f}%"
