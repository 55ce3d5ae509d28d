"""What the package aims at, beside torch, and how far a result is from it."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import MAIN, OURS, UNFUSED
from .table import Table, format_seconds, percent, three_digits

# The main optimizer's ratio to torch's fastest, on two cores.
RATIOS = {
    "1000x64": 30.0,
    "3000x3500": 6.0,
    "500-groups": 20.0,
    "mlp": 5.0,
    "resnet-50": 1.25,
    "gpt2-124m": 1.1,
}

# Of what torch does not fuse, on any workload.
UNFUSED_RATIO = 4.5

# Of the touch kernel's speed, on what no cache holds.
SHARE_OF_TOUCH = 0.95
IN_NO_CACHE = 1e9  # bytes; the largest caches of processors and GPUs have some hundred MB

IMPORT_SECONDS = 0.05


def targets(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Every aim for which the result has a number."""
    parts = result.get("parts", {})
    single = [*parts.get("elements", ()), *(case for case in cases if case["tensors"] == 1)]
    return Table(
        ("aim", "at least", "measured", "reached"),
        [
            *_model_rows(cases),
            *_unfused_rows(cases),
            *_ratio_rows("one tensor, lowest of all sizes", single, 1.0),
            *_touch_rows(cases),
            *_cost_rows(parts.get("costs", [])),
        ],
        "Ratios to torch's fastest implementation, for two cores; the part of the touch kernel's "
        "speed on what no cache holds. tie: the aim is between the quartiles.",
        words=1,
    )


def _reached(summary: dict[str, float], least: float) -> str:
    if summary["median"] >= least:
        return "yes"
    return "tie" if summary["upper_quartile"] >= least else "no"


def _model_rows(cases: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name, least in RATIOS.items():
        of_name = [c for c in cases if (c["workload"], c["optimizer"]) == (name, MAIN)]
        rows += _ratio_rows(f"{name}, {MAIN}", of_name, least)
    return rows


def _unfused_rows(cases: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for name in UNFUSED:
        of_name = [case for case in cases if case["optimizer"] == name]
        rows += _ratio_rows(f"{name}, lowest of all workloads", of_name, UNFUSED_RATIO)
    return rows


def _ratio_rows(aim: str, cases: list[dict[str, Any]], least: float) -> list[list[str]]:
    """The lowest ratio of the cases; no row if torch was timed in none."""
    speedups = [case["speedup"] for case in cases if case["speedup"]]
    if not speedups:
        return []
    lowest = min(speedups, key=lambda speedup: speedup["median"])
    return [[aim, three_digits(least), three_digits(lowest["median"]), _reached(lowest, least)]]


def _touch_rows(cases: list[dict[str, Any]]) -> list[list[str]]:
    large = [case["share_of_touch"] for case in cases if case["ideal_bytes"] >= IN_NO_CACHE]
    if not large:
        return []
    lowest = min(large, key=lambda share: share["median"])
    aim = "part of touch, lowest of all that no cache holds"
    least = f"{100 * SHARE_OF_TOUCH:.0f}%"
    return [[aim, least, percent(lowest), _reached(lowest, SHARE_OF_TOUCH)]]


def _cost_rows(costs: list[dict[str, Any]]) -> list[list[str]]:
    """Import and construction, where less is better."""
    took = {(row["what"].split(",")[0], row["who"]): row["value"] for row in costs}
    rows = []
    if ("import", OURS) in took:
        rows.append(_at_most("import, beside torch's", IMPORT_SECONDS, took["import", OURS]))
    constructions = {who: value for (what, who), value in took.items() if what == "construction"}
    if constructions:
        ours = constructions.pop(OURS)
        rows.append(_at_most("construction", min(constructions.values()), ours))
    return rows


def _at_most(aim: str, most: float, measured: float) -> list[str]:
    reached = "yes" if measured <= most else "no"
    return [aim, f"at most {format_seconds(most)}", format_seconds(measured), reached]
