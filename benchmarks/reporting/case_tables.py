"""The tables of the cases: times, and what belongs to them."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import COMPILED, COPY, MAIN, OURS, PEERS, TORCH, TOUCH, UNFUSED
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
        lead=torch_is_faster(cases),
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
        + RATIO
    )


RATIO = (
    "ratio: torch's fastest over fusedopt, the median over rounds of both times in one round; it "
    "need not be the quotient of the two medians. tie: within 3% of 1, or 1 between the quartiles. "
    "unsettled: memory's speed changed by more than a tenth in more than half of the rounds."
)


def torch_is_faster(cases: list[dict[str, Any]]) -> list[str]:
    """A line that names every case in which torch is faster; it is to be read first."""
    slower = [
        f"{case['workload']}, {case['optimizer']} ({three_digits(case['speedup']['median'])})"
        for case in cases
        if case["speedup"] and case["speedup"]["median"] < 1 and not case["tie"]
    ]
    return [f"torch's fastest is faster in {len(slower)} of {len(cases)} cases: "
            f"{'; '.join(slower)}."] if slower else []  # fmt: skip


def overview(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Six cases that show where a step gains and where it does not."""
    found = {(case["workload"], case["optimizer"]): case for case in cases if case["speedup"]}
    chosen = [(found[key], text) for key, text in _OVERVIEW.items() if key in found]
    return Table(
        ("what is stepped", OURS, "torch's fastest", "ratio"),
        [
            [
                text,
                format_seconds(case["peers"][OURS]["median"]),
                format_seconds(case["peers"][case["fastest_torch"]]["median"])
                + f" ({case['fastest_torch']})",
                speedup_cell(case),
            ]
            for case, text in chosen
        ],
        "Median time of a step. ratio: torch's fastest over fusedopt, the median over rounds of "
        "both times in one round. tie: within 3% of 1, or 1 between the quartiles. unsettled: "
        "memory's speed changed by more than a tenth in more than half of the rounds.",
        words=1,
        lead=_first_and_last(chosen),
    )


def _first_and_last(chosen: list[tuple[dict[str, Any], str]]) -> list[str]:
    """Where a step gains most, and where nothing can be gained, in a sentence."""
    if len(chosen) < 2:
        return []
    (most, what), (least, limit) = chosen[0], chosen[-1]
    cold = most.get("cold", {}).get("speedup")
    return [
        f"{what}: {three_digits(most['speedup']['median'])} times as fast as torch's fastest"
        + (f", {three_digits(cold['median'])} times with cold caches" if cold else "")
        + f"; {limit}: {three_digits(least['speedup']['median'])} times."
    ]


_OVERVIEW = {
    ("1000x64", MAIN): f"1,000 tensors of 64, {MAIN}",
    ("500-groups", MAIN): f"500 groups of one tensor of 4,096, {MAIN}",
    ("mlp", MAIN): f"a small network: 6 tensors, 269,322 parameters, {MAIN}",
    ("gpt2-124m", UNFUSED[0]): f"GPT-2, 124 M parameters, {UNFUSED[0]}, which torch does not fuse",
    ("gpt2-124m-bfloat16", MAIN): f"GPT-2 in bfloat16, {MAIN}",
    ("one-64m", MAIN): f"one float32 tensor of 64 M, {MAIN}, where memory is the limit",
}


def cold(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Small workloads, in the caches and after something else has used them."""
    measured = [case for case in cases if "cold" in case and case["cold"]["speedup"]]
    return Table(
        ("workload", "optimizer", OURS, "cold", "torch's fastest", "cold", "ratio", "cold"),
        [
            [
                case["workload"],
                case["optimizer"],
                *(
                    format_seconds(timed["peers"][who]["median"])
                    for who, timed in (
                        (OURS, case),
                        (OURS, case["cold"]),
                        (case["fastest_torch"], case),
                        (case["cold"]["fastest_torch"], case["cold"]),
                    )
                ),
                speedup_cell(case),
                speedup_cell(case["cold"]),
            ]
            for case in measured
        ],
        "Median time of a step, in a loop of nothing else, and cold: single steps, each after a "
        "forward and backward pass of an MLP on 64 images. Workloads of several tensors with up to "
        "four million elements; larger ones are in no cache. ratio as above.",
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
    """The ratio to torch's fastest, and whether it is a tie or unsettled."""
    if case["speedup"] is None:
        return "-"
    mark = " tie" if case["tie"] else ""
    mark += " unsettled" if TOUCH in case["peers"] and is_unsettled(case["peers"][TOUCH]) else ""
    return three_digits(case["speedup"]["median"]) + mark


def details(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Sizes, spreads, states and first steps.

    No rows for a file of the time when states were not counted.
    """
    counted = [case for case in cases if "ratios" in case]
    return Table(
        (
            "workload", "optimizer", "tensors", "elements", "MB", "rounds", "spread", "of ratio",
            "state", "first step",
        ),
        [
            [
                case["workload"],
                case["optimizer"],
                f"{case['tensors']:,}",
                format_count(case["elements"]),
                three_digits(case["ideal_bytes"] / 1e6),
                _rounds(case["peers"][OURS]),
                spread(case["peers"][OURS]),
                spread(case["speedup"]) if case["speedup"] else "-",
                three_digits(case["peers"][OURS]["state_bytes_per_parameter"]),
                format_seconds(case["peers"][OURS]["first_step"]),
            ]
            for case in counted
        ],
        "MB: what the step has to move. rounds: those that count, of all; the others fell into "
        "another phase of the machine. spread: half the distance between the quartiles, of "
        "fusedopt's time and of the ratio, over the median. state: bytes per parameter. first "
        "step: fusedopt's, which creates the states.",
        notes=[*_other_states(counted), *_compile_times(counted)],
    )  # fmt: skip


def is_unsettled(timed: dict[str, Any]) -> bool:
    """Whether most rounds of a floor fell into another phase than the one that counts."""
    return len(timed.get("left_out", ())) > len(timed["seconds"])


def _rounds(timed: dict[str, Any]) -> str:
    kept = len(timed["seconds"])
    return f"{kept} of {kept + len(timed.get('left_out', ()))}"


def _other_states(cases: list[dict[str, Any]]) -> list[str]:
    """A line for every peer whose states have another size."""
    key = "state_bytes_per_parameter"
    return [
        f"{name} has {three_digits(timed[key])} bytes of state per parameter: "
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
