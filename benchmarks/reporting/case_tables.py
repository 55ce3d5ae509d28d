"""The tables of the cases: times, and what belongs to them."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import COMPILED, COPY, OURS, PEERS, TORCH, TOUCH
from .table import Table, format_count, format_seconds, is_gpu, percent, spread, three_digits

_LOW_BIT = "keeps states of 8 bits, so it computes something else (*)"


def not_timed(cases: list[dict[str, Any]]) -> list[str]:
    """A line for every peer that was not timed, or computes something else, and where and why."""
    where: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        reasons = {**case["not_timed"], **dict.fromkeys(case.get("low_bit", ()), _LOW_BIT)}
        for peer, reason in reasons.items():
            title = f"torch {peer}" if peer in TORCH else peer
            where.setdefault((title, reason), []).append(f"{case['workload']}, {case['optimizer']}")
    everywhere = len(cases)
    return [
        f"{peer} {reason}" + ("" if len(places) == everywhere > 1 else f": {'; '.join(places)}")
        for (peer, reason), places in where.items()
    ]


def steps(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Who takes how long."""
    floors = (TOUCH, COPY) if is_gpu(result) else (TOUCH,)
    peers = peer_names(cases)
    return Table(
        ("workload", "optimizer", OURS, "GB/s", *floors, *peers, "ratio"),
        [_cells(case, peers) for case in cases],
        _steps_legend(is_gpu(result), peers),
        notes=not_timed(cases),
    )


def _steps_legend(on_gpu: bool, peers: list[str]) -> str:
    *others, last = [peer for peer in peers if peer in TORCH] or ["-"]
    named = f"{', '.join(others)} and {last} are" if others else f"{last} is"
    copy = "copy: time of a copy within the GPU's memory that moves as many, over fusedopt's. "
    return (
        f"Median time of a step; {named} torch's. "
        "GB/s: bytes that the step has to move, over fusedopt's time. "
        "touch: time of a kernel that only moves them, over fusedopt's. "
        + (copy if on_gpu else "")
        + "ratio: time of torch's fastest over fusedopt's."
    )


def peer_names(cases: list[dict[str, Any]]) -> list[str]:
    """Those who were asked for, in the order in which they are listed."""
    asked = {name for case in cases for name in (*case["peers"], *case["not_timed"])}
    return [name for name in PEERS if name in asked]


def _cells(case: dict[str, Any], peers: list[str]) -> list[str]:
    return [
        case["workload"],
        case["optimizer"],
        format_seconds(case["peers"][OURS]["median"]),
        three_digits(case["bytes_per_second"] / 1e9),
        *(percent(case[floor]) for floor in ("share_of_touch", "share_of_copy") if floor in case),
        *(peer_cell(case, name) for name in peers),
        speedup_cell(case),
    ]


def peer_cell(case: dict[str, Any], name: str) -> str:
    """A peer's time, marked if its states are rounded; or that a note says why there is none."""
    if name in case["peers"]:
        mark = " *" if name in case.get("low_bit", ()) else ""
        return format_seconds(case["peers"][name]["median"]) + mark
    return "note" if name in case["not_timed"] else "-"


def speedup_cell(case: dict[str, Any]) -> str:
    """The ratio to torch's fastest, and whether it is a tie."""
    if case["speedup"] is None:
        return "-"
    return three_digits(case["speedup"]["median"]) + (" tie" if case["tie"] else "")


def details(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Sizes, spreads, states and first steps.

    No rows for a file of the time when states were not counted.
    """
    counted = [case for case in cases if "ratios" in case]
    return Table(
        (
            "workload", "optimizer", "tensors", "elements", "MB", "spread", "of ratio", "state",
            "first step",
        ),
        [
            [
                case["workload"],
                case["optimizer"],
                f"{case['tensors']:,}",
                format_count(case["elements"]),
                three_digits(case["ideal_bytes"] / 1e6),
                spread(case["peers"][OURS]),
                spread(case["speedup"]) if case["speedup"] else "-",
                three_digits(case["peers"][OURS]["state_bytes_per_parameter"]),
                format_seconds(case["peers"][OURS]["first_step"]),
            ]
            for case in counted
        ],
        "MB: what the step has to move. spread: half the distance between the quartiles, of "
        "fusedopt's time and of the ratio, over the median. state: bytes a parameter. first step: "
        "fusedopt's, which creates the states.",
        notes=[*_other_states(counted), *_compile_times(counted)],
    )  # fmt: skip


def _other_states(cases: list[dict[str, Any]]) -> list[str]:
    """A line for every peer whose states have another size."""
    key = "state_bytes_per_parameter"
    return [
        f"{name} has {three_digits(timed[key])} bytes of state a parameter: "
        f"{case['workload']}, {case['optimizer']}"
        for case in cases
        for name, timed in case["peers"].items()
        if name in PEERS and abs(timed[key] - case["peers"][OURS][key]) > 0.1
    ]


def _compile_times(cases: list[dict[str, Any]]) -> list[str]:
    """A line for every step that was compiled."""
    return [
        f"torch {COMPILED} took {format_seconds(case['peers'][COMPILED]['first_step'])} to compile:"
        f" {case['workload']}, {case['optimizer']}"
        for case in cases
        if COMPILED in case["peers"]
    ]
