"""The tables of what is measured beside the cases."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import MAIN, OURS, TOUCH, TRAINED
from .case_tables import not_timed, peer_cell, peer_names, speedup_cell
from .table import Table, format_count, format_seconds, percent, three_digits


def family(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """How time grows with tensors or with elements."""
    peers = peer_names(cases)
    return Table(
        ("tensors", "elements each", OURS, TOUCH, *peers, "ratio"),
        [
            [
                f"{case['tensors']:,}",
                f"{case['elements'] // case['tensors']:,}",
                format_seconds(case["peers"][OURS]["median"]),
                percent(case["share_of_touch"]),
                *(peer_cell(case, name) for name in peers),
                speedup_cell(case),
            ]
            for case in cases
        ],
        f"Median time of a step of {MAIN}; touch and ratio as above.",
        words=0,
        notes=not_timed(cases),
    )


def threads(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """How time falls with threads."""
    peers = peer_names(cases)
    alone = {case["workload"]: case["peers"] for case in cases if case["threads"] == 1}

    def cell(case: dict[str, Any], name: str) -> str:
        if name not in case["peers"]:
            return peer_cell(case, name)
        median = case["peers"][name]["median"]
        gain = alone[case["workload"]][name]["median"] / median
        return f"{format_seconds(median)} ({three_digits(gain)})"

    return Table(
        ("workload", "threads", OURS, TOUCH, *peers),
        [
            [
                case["workload"],
                str(case["threads"]),
                *(cell(case, name) for name in (OURS, TOUCH, *peers)),
            ]
            for case in cases
        ],
        f"Median time of a step of {MAIN}; in brackets, how many times as fast as on one thread.",
        words=1,
    )


def training(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Whole training steps."""
    names = list(rows[0]["peers"])

    def saved(row: dict[str, Any], name: str) -> str:
        return f"{100 * (1 - row['share_of'][name]['median']):.0f}%"

    return Table(
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
        f"Median time of a whole training step with {TRAINED}: forward, backward, clipping, step, "
        "zeroing. torch: torch's optimizer as it is by default; foreach and fused: with that "
        "option. saves: the part of a training step's time that fusedopt saves, beside torch's "
        "default and beside its fastest.",
        words=1,
    )


def sequences(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """What is called between backward and the next forward."""

    def cells(row: dict[str, Any]) -> list[str]:
        is_timed = row["fastest_torch"] is not None
        return [
            row["workload"],
            row["sequence"],
            format_seconds(row["peers"][OURS]["median"]),
            percent(row["share_of_touch"]) if row["share_of_touch"] else "-",
            peer_cell(row, row["fastest_torch"]) if is_timed else "note",
            speedup_cell(row),
            f"{100 * (1 - 1 / row['speedup']['median']):.0f}%" if is_timed else "-",
        ]

    return Table(
        ("workload", "sequence", OURS, "floor", "torch", "ratio", "saves"),
        [cells(row) for row in rows],
        f"Median time of what is called between backward and the next forward, with {TRAINED}. "
        f"{OURS} clips in the step, or by its clip_grad_norm_ where that is named; torch by its "
        "own, ahead of its fused step of float32 states. floor: time of kernels that only read the "
        "gradients and then move the step's bytes, over fusedopt's; of the norm, of reading alone. "
        "ratio: torch over fusedopt, the median over rounds of both times in one round; saves: the "
        "part of torch's time. Of whole training steps, torch is its fastest implementation. tie "
        "and unsettled as above.",
        notes=not_timed([{**row, "optimizer": row["sequence"]} for row in rows]),
    )


def costs(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """What comes before the steady state."""
    return Table(
        ("what", "who", "takes"),
        [[row["what"], row["who"], _cost_cell(row)] for row in rows],
        "Medians. import, beside torch: what importing fusedopt takes after torch. peak memory: by "
        "how much construction and two steps raise a process's resident memory at most.",
    )


def _cost_cell(row: dict[str, Any]) -> str:
    if row["unit"] == "seconds":
        return format_seconds(row["value"])
    return f"{three_digits(row['value'])} {row['unit']}"
