"""The tables of a result, as rows of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .peers import COMPILED, COPY, OURS, PEERS, TORCH, TOUCH

_LOW_BIT = "keeps states of 8 bits, so it computes something else (*)"


@dataclass(frozen=True)
class Sheet:
    """One table.

    Attributes:
        columns: titles.
        rows: as many texts each as there are titles.
        legend: what the columns say.
        words: how many columns, from the left, are words and not numbers.
        notes: lines about single rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    legend: str
    words: int = 2
    notes: Sequence[str] = ()


def all_sheets(result: dict[str, Any]) -> dict[str, Sheet]:
    """Every table for which the result has rows, by name."""
    rows = {"steps": result["cases"], "details": result["cases"], **result.get("parts", {})}
    made = {name: make(rows[name], result) for name, make in _SHEETS.items() if rows.get(name)}
    return {name: sheet for name, sheet in made.items() if sheet.rows}


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


def conditions(result: dict[str, Any]) -> str:
    """Where and with what the result was measured, in one line."""
    versions = result["versions"]
    return ", ".join(
        (
            *(_gpu(result) if is_gpu(result) else _processor(result)),
            result["settings"]["dtype"],
            f"torch {versions['torch']}",
            versions["compiler"],
            *(f"{name} {version}" for name, version in versions.get("peers", {}).items()),
            *(f"{name}={value}" for name, value in result["environment"].items()),
        )
    )


def skipped(result: dict[str, Any]) -> list[str]:
    """A line for every case that was not run, and why."""
    return [f"Skipped: {line}" for line in result.get("skipped", ())]


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


def _steps(cases: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    floors = (TOUCH, COPY) if is_gpu(result) else (TOUCH,)
    peers = peer_names(cases)
    return Sheet(
        ("workload", "optimizer", OURS, "GB/s", *floors, *peers, "ratio"),
        [_cells(case, peers) for case in cases],
        _steps_legend(is_gpu(result), peers),
        notes=not_timed(cases),
    )


def _steps_legend(on_gpu: bool, peers: list[str]) -> str:
    torchs = [peer for peer in peers if peer in TORCH]
    named = f"{', '.join(torchs[:-1])} and {torchs[-1]} are" if torchs[1:] else f"{torchs[0]} is"
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
        *(_percent(case[floor]) for floor in ("share_of_touch", "share_of_copy") if floor in case),
        *(_peer_cell(case, name) for name in peers),
        _speedup_cell(case),
    ]


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['median']:.0f}%"


def _peer_cell(case: dict[str, Any], name: str) -> str:
    if name in case["peers"]:
        mark = " *" if name in case.get("low_bit", ()) else ""
        return format_seconds(case["peers"][name]["median"]) + mark
    return "note" if name in case["not_timed"] else "-"


def _speedup_cell(case: dict[str, Any]) -> str:
    if case["speedup"] is None:
        return "-"
    return three_digits(case["speedup"]["median"]) + (" tie" if case["tie"] else "")


def _details(cases: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    """Nothing for a file of the time when states were not counted."""
    counted = [case for case in cases if "ratios" in case]
    return Sheet(
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


def spread(summary: dict[str, float]) -> str:
    """Half the distance between the quartiles, as a percentage of the median."""
    half = (summary["upper_quartile"] - summary["lower_quartile"]) / 2
    return f"{100 * half / summary['median']:.1f}%"


def _family(cases: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    peers = peer_names(cases)
    return Sheet(
        ("tensors", "elements each", OURS, TOUCH, *peers, "ratio"),
        [
            [
                f"{case['tensors']:,}",
                f"{case['elements'] // case['tensors']:,}",
                format_seconds(case["peers"][OURS]["median"]),
                _percent(case["share_of_touch"]),
                *(_peer_cell(case, name) for name in peers),
                _speedup_cell(case),
            ]
            for case in cases
        ],
        "Median time of a step of Adam; touch and ratio as above.",
        words=0,
        notes=not_timed(cases),
    )


def _threads(cases: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    peers = peer_names(cases)
    alone = {case["workload"]: case["peers"] for case in cases if case["threads"] == 1}

    def cell(case: dict[str, Any], name: str) -> str:
        if name not in case["peers"]:
            return _peer_cell(case, name)
        median = case["peers"][name]["median"]
        gain = alone[case["workload"]][name]["median"] / median
        return f"{format_seconds(median)} ({three_digits(gain)})"

    return Sheet(
        ("workload", "threads", OURS, TOUCH, *peers),
        [
            [
                case["workload"],
                str(case["threads"]),
                *(cell(case, name) for name in (OURS, TOUCH, *peers)),
            ]
            for case in cases
        ],
        "Median time of a step of Adam; in brackets, how many times as fast as on one thread.",
        words=1,
    )


def _training(rows: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    names = list(rows[0]["peers"])

    def saved(row: dict[str, Any], name: str) -> str:
        return f"{100 * (1 - row['share_of'][name]['median']):.0f}%"

    return Sheet(
        ("model", "parameters", *names, "saves", "of fastest"),
        [
            [
                row["model"],
                format_count(row["elements"]),
                *(format_seconds(row["peers"][name]["median"]) for name in names),
                saved(row, "torch"),
                saved(row, row["fastest_torch"]),
            ]
            for row in rows
        ],
        "Median time of a whole training step with AdamW: forward, backward, clipping, step, "
        "zeroing. torch: torch's optimizer as it is by default; foreach and fused: with that "
        "option. saves: the part of a training step's time that fusedopt saves, beside torch's "
        "default and beside its fastest.",
        words=1,
    )


def _costs(rows: list[dict[str, Any]], result: dict[str, Any]) -> Sheet:
    return Sheet(
        ("what", "who", "takes"),
        [[row["what"], row["who"], _cost_cell(row)] for row in rows],
        "Medians. import, beside torch: what importing fusedopt takes after torch. peak memory: by "
        "how much construction and two steps raise a process's resident memory at most.",
    )


def _cost_cell(row: dict[str, Any]) -> str:
    if row["unit"] == "seconds":
        return format_seconds(row["value"])
    return f"{three_digits(row['value'])} {row['unit']}"


def _processor(result: dict[str, Any]) -> tuple[str, ...]:
    host = result["machine"]
    return (
        f"{host['processor']}",
        f"{host['cores']} cores",
        f"{host['memory_bytes'] / 2**30:.0f} GiB",
        f"threads: {result['threads']}",
        result["isa"],
    )


def _gpu(result: dict[str, Any]) -> tuple[str, ...]:
    host, gpu = result["machine"], result["machine"]["gpu"]
    return (
        f"{gpu['name']}",
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB",
        f"driver {gpu['driver']}",
        f"CUDA {gpu['cuda']}",
        f"host {host['processor']}",
    )


_SHEETS: dict[str, Callable[[list[dict[str, Any]], dict[str, Any]], Sheet]] = {
    "steps": _steps,
    "details": _details,
    "tensors": _family,
    "elements": _family,
    "threads": _threads,
    "training": _training,
    "costs": _costs,
}
