"""The tables of parameters and states that are stored in fewer bytes."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import OURS, TORCH, TRAINED
from .case_tables import not_timed, peer_names, speedup_cell
from .table import Table, format_seconds, percent, three_digits


def storage(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Every way to store, beside torch's fused step in float32."""
    peers = peer_names(rows)
    yardsticks = [*dict.fromkeys(name for row in rows for name in row["yardsticks"])]
    titles = [f"torch {name}" if name in TORCH else name for name in peers]
    return Table(
        (
            "workload", "stored", "threads", OURS, "ns", "bytes", "touch", *titles, "ratio",
            *(f"of {name}'s best" for name in yardsticks),
        ),
        [
            [
                row["workload"],
                row["way"],
                str(row["threads"]),
                format_seconds(row["peers"][OURS]["median"]),
                three_digits(row["peers"][OURS]["median"] / row["elements"] * 1e9),
                three_digits(row["bytes_per_parameter"]),
                percent(row["share_of_touch"]),
                *(_peer(row, name) for name in peers),
                speedup_cell(row),
                *(_median(row["yardsticks"].get(name)) for name in yardsticks),
            ]
            for row in rows
        ],
        _legend(bool(yardsticks)),
        notes=not_timed([{**row, "optimizer": row["way"]} for row in rows]),
    )  # fmt: skip


def _legend(has_yardsticks: bool) -> str:
    best = (
        "of ...'s best: the time of that peer's fastest step in this table, over fusedopt's. "
        if has_yardsticks
        else ""
    )
    return (
        f"Median time of a step of {TRAINED}. ns: of it, per parameter. bytes: of parameter and "
        "states, per parameter. "
        "touch: time of a kernel that only moves the bytes of this way, over fusedopt's. Others: "
        "their time, and in brackets that over fusedopt's. ratio: time of torch's fused step in "
        f"float32 over fusedopt's in this way, both in the same rounds. {best}tie and unsettled as "
        "above."
    )


def ways(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Every way to store, to choose from: what it takes of memory and of time."""
    threads = result["threads"]
    shares: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["threads"] == threads and row["speedup"]:
            share = percent({"median": 1 / row["speedup"]["median"]})
            shares.setdefault(row["workload"], {})[row["way"]] = share
    bytes_of = {row["way"]: three_digits(row["bytes_per_parameter"]) for row in rows}
    return Table(
        ("stored", "bytes", *shares),
        [
            [way, size, *(of.get(way, "-") for of in shares.values())]
            for way, size in bytes_of.items()
        ],
        f"bytes: of parameter and states, per parameter. Others: the time of a step of {TRAINED} "
        f"on {threads} threads, as a share of that of torch's fused step in float32.",
        words=1,
    )


def _peer(row: dict[str, Any], name: str) -> str:
    if name in row["peers"]:
        time = format_seconds(row["peers"][name]["median"])
        mark = " *" if name in row["low_bit"] else ""
        return f"{time} ({_median(row['ratios'][name])}){mark}"
    return "note" if name in row["not_timed"] else "-"


def _median(summary: dict[str, float] | None) -> str:
    return three_digits(summary["median"]) if summary else "-"


def memory(rows: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """What parameters and states take."""
    return Table(
        ("stored", "who", "parameter", "computed", "resident", "at most"),
        [
            [
                row["way"],
                f"torch {row['who']}" if row["who"] in TORCH else row["who"],
                *(three_digits(row[key]) for key in ("parameter", "computed", "resident", "peak")),
            ]
            for row in rows
        ],
        f"Bytes per parameter of {TRAINED} on {rows[0]['workload']}, without gradients. computed: "
        "of the tensors of parameter and states. resident: parameter, and what construction and "
        "two steps add to the resident memory of a process of its own; at most: meanwhile.",
    )
