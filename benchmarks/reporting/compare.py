"""What ``fusedopt compare`` does: two results beside each other, and what has become slower."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contestants.contests import OURS
from . import report
from .table import Table, format_seconds, three_digits


class NotComparableError(ValueError):
    """A file that is no result, or two that were not measured on one machine in the same way."""


@dataclass(frozen=True)
class Change:
    """One peer's step in one case, before and after.

    Attributes:
        case: what was measured, in words.
        peer: who.
        before, after: median and quartiles in seconds, as a result has them.
    """

    case: str
    peer: str
    before: dict[str, Any]
    after: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Median after over median before: above 1, it has become slower."""
        return float(self.after["median"] / self.before["median"])

    def verdict(self, threshold: float) -> str:
        """ "slower" or "faster" beyond the threshold, with quartiles apart; else nothing."""
        if self.ratio > 1 + threshold and _apart(self.before, self.after):
            return "slower"
        if self.ratio < 1 / (1 + threshold) and _apart(self.after, self.before):
            return "faster"
        return ""

    def is_regression(self, threshold: float) -> bool:
        """Whether this package has become slower: what others do is for comparison only."""
        return self.peer == OURS and self.verdict(threshold) == "slower"


def _apart(low: dict[str, Any], high: dict[str, Any]) -> bool:
    return bool(low["upper_quartile"] < high["lower_quartile"])


def print_comparison(before: Path, after: Path, threshold: float, force: bool) -> bool:
    """Prints every change and says whether there is a regression.

    Args:
        before, after: files that ``fusedopt bench --json`` has written.
        threshold: by which fraction a step has to be slower, beyond the quartiles of both.
        force: compare whatever the conditions.

    Raises:
        NotComparableError: a file is not one that ``fusedopt bench --json`` has written; or
            machine, threads, dtype or settings differ, without ``force``.
    """
    old, new = read(before), read(after)
    different = differences(old, new)
    if different and not force:
        listed = "; ".join(different)
        raise NotComparableError(f"not comparable without --force: {listed}")
    changes = compare(old, new)
    regressions = [change for change in changes if change.is_regression(threshold)]
    report.show_table(table(changes, threshold))
    report.say(different)
    report.say(
        [f"{len(regressions)} of {sum(c.peer == OURS for c in changes)} cases of {OURS} slower"]
    )
    return bool(regressions)


def read(path: Path) -> dict[str, Any]:
    """A result.

    Raises:
        NotComparableError: the file cannot be read, or holds something else.
    """
    try:
        result = json.loads(path.read_text())
        _conditions(result)
        _timings(result)
    except OSError as error:
        raise NotComparableError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NotComparableError(
            f"{path} is not a file that fusedopt bench --json has written"
        ) from None
    return dict(result)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for everything that keeps two results from being compared.

    Settings count that both have; a result from before there were devices is of the CPU.
    """
    before, after = _conditions(old), _conditions(new)
    return [
        f"{key}: {before[key]} before, {after[key]} after"
        for key in before
        if key in after and before[key] != after[key]
    ]


def _conditions(result: dict[str, Any]) -> dict[str, Any]:
    top = {key: result[key] for key in ("isa", "threads", "environment")}
    settings = {"device": "cpu", **result["settings"]}
    machine = dict(result["machine"])
    # What the system keeps for itself differs from start to start.
    machine["memory in GiB"] = round(machine.pop("memory_bytes") / 2**30)
    return {**machine, **top, **settings}


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The changes of every case and peer that both results have, this package's first."""
    before, after = _timings(old), _timings(new)
    return [Change(*key, before[key], after[key]) for key in before if key in after]


def _timings(result: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Every timing of a result, by case and peer."""
    parts = result.get("parts", {})
    families = (*parts.get("tensors", ()), *parts.get("elements", ()))
    stored = (*parts.get("storage", ()), *parts.get("offload", ()))
    named = [
        *((f"{case['workload']}, {case['optimizer']}", case) for case in result["cases"]),
        *((f"{case['workload']}, {case['optimizer']}, alone", case) for case in families),
        *((f"{case['workload']}, threads: {case['threads']}", case)
          for case in parts.get("threads", ())),
        *((f"training: {row['model']}", row) for row in parts.get("training", ())),
        *((f"{row['workload']}, {row['way']}, threads: {row['threads']}", row)
          for row in stored),
        *((f"{row['workload']}, {row['sequence']}", row) for row in parts.get("sequences", ())),
    ]  # fmt: skip
    return {(name, peer): timing for name, row in named for peer, timing in row["peers"].items()}


def table(changes: list[Change], threshold: float) -> Table:
    """The changes as a table."""
    return Table(
        ("case", "who", "before", "after", "ratio", ""),
        [
            [
                change.case,
                change.peer,
                format_seconds(change.before["median"]),
                format_seconds(change.after["median"]),
                three_digits(change.ratio),
                change.verdict(threshold),
            ]
            for change in changes
        ],
        "Median time of a step; ratio: after over before. slower, faster: by more than "
        f"{100 * threshold:g}%, and the quartiles do not overlap.",
    )
