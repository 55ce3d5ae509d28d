"""What the package aims at, and how far a result is from it: ``fusedopt bench --aims``."""

from __future__ import annotations

from typing import Any

from ..contestants.contests import OURS
from .table import Table, format_seconds, percent, three_digits

# The ratio to torch's fastest where its conversions, not the memory, take its time.
IN_16_BITS = ("bfloat16", "float16")
RATIO_IN_16_BITS = 1.4

# Of the touch kernel's speed, on what no cache holds.
SHARE_OF_TOUCH = 0.95
IN_NO_CACHE = 1e9  # bytes; the largest caches of processors and GPUs have some hundred MB

IMPORT_SECONDS = 0.05

# Of what is stored in fewer bytes, by the end of the way's name: the ratio to torch's fused step in
# float32. All-bfloat16 is stochastic rounding with states rounded as they are by default.
RATIO_IN_FEWER_BYTES = {"16-bit states": 1.3, "stochastic rounding": 1.5, "8-bit states": 1.2}
RATIO_TO_OTHER_8_BIT_STEPS = 20
RATIO_TO_DEEPSPEED = 1.4
MOST_BYTES = {"float32, 8-bit states": 6.04, "bfloat16 with master, 8-bit states": 6.04}

# Between backward and the next forward: the ratio to torch's clipping and fused step.
RATIO_OF_SEQUENCES = {
    ("gpt2-124m", "clip, step"): 1.35,
    ("resnet-50", "clip, step"): 1.35,
    ("1000x64", "clip, step"): 6,
    ("mlp", "clip, step"): 4,
    ("gpt2-124m", "clip, step, EMA"): 1.5,
    ("gpt2-124m", "clip, step, 16-bit states"): 1.7,
}
# Of the speed at which memory is read.
SHARE_OF_READING = 0.95


def targets(cases: list[dict[str, Any]], result: dict[str, Any]) -> Table:
    """Every aim for which the result has a number."""
    parts = result.get("parts", {})
    everything = [*cases, *parts.get("tensors", ()), *parts.get("elements", ())]
    return Table(
        ("aim", "at least", "measured", "reached"),
        [
            *_ratio_rows("ratio, lowest of all", everything, 1.0),
            *_rows_in_16_bits(cases),
            *_touch_rows(cases),
            *_sequence_rows(parts.get("sequences", [])),
            *_cost_rows(parts.get("costs", [])),
            *_stored_rows(parts.get("storage", []), result.get("threads")),
            *_offload_rows(parts.get("offload", [])),
            *_memory_rows(parts.get("memory", [])),
        ],
        "Ratios to torch's fastest implementation; speed as a share of the touch kernel's, on what "
        "no cache holds. tie: the aim is between the quartiles.",
        words=1,
    )


def _reached(summary: dict[str, float], least: float) -> str:
    if summary["lower_quartile"] <= least <= summary["upper_quartile"]:
        return "tie"
    return "yes" if summary["median"] > least else "no"


def _rows_in_16_bits(cases: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for dtype in IN_16_BITS:
        of_dtype = [case for case in cases if case["workload"].endswith(f"-{dtype}")]
        rows += _ratio_rows(f"ratio in {dtype}, lowest of all", of_dtype, RATIO_IN_16_BITS)
    return rows


def _ratio_rows(aim: str, cases: list[dict[str, Any]], least: float) -> list[list[str]]:
    """The lowest ratio of the cases; no row if torch was timed in none."""
    timed = [case for case in cases if case["speedup"]]
    if not timed:
        return []
    lowest = min(timed, key=lambda case: case["speedup"]["median"])
    where = f"{aim}: {lowest['workload']}, {lowest['optimizer']}"
    speedup = lowest["speedup"]
    measured = three_digits(speedup["median"])
    return [[where, three_digits(least), measured, _reached(speedup, least)]]


def _touch_rows(cases: list[dict[str, Any]]) -> list[list[str]]:
    large = [case["share_of_touch"] for case in cases if case["ideal_bytes"] >= IN_NO_CACHE]
    return _share_rows("share of touch's speed", large, SHARE_OF_TOUCH)


def _share_rows(aim: str, shares: list[dict[str, float]], least: float) -> list[list[str]]:
    """The lowest share, if there is any."""
    if not shares:
        return []
    lowest = min(shares, key=lambda share: share["median"])
    reached = _reached(lowest, least)
    return [[f"{aim}, lowest of all", f"{100 * least:.0f}%", percent(lowest), reached]]


def _sequence_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    made = [
        _ratio_row(f"{row['workload']}, {row['sequence']}", row["speedup"], least)
        for row in rows
        if row["speedup"] and (least := RATIO_OF_SEQUENCES.get((row["workload"], row["sequence"])))
    ]
    of_norm = [row["share_of_touch"] for row in rows if row["sequence"] == "norm"]
    return [*made, *_share_rows("norm's share of reading's speed", of_norm, SHARE_OF_READING)]


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


def _stored_rows(rows: list[dict[str, Any]], threads: int | None) -> list[list[str]]:
    """The lowest ratio of each kind of way, with all threads."""
    with_all = [row for row in rows if row["threads"] == threads]
    made = []
    for kind, least in RATIO_IN_FEWER_BYTES.items():
        of_kind = [{**row, "optimizer": row["way"]} for row in with_all
                   if row["way"].endswith(kind)]  # fmt: skip
        made += _ratio_rows(f"{kind}, to torch's fused float32, lowest", of_kind, least)
    for peer in {peer: None for row in with_all for peer in row["low_bit"]}:
        ratios = [row["ratios"][peer] for row in with_all if peer in row["ratios"]]
        lowest = min(ratios, key=lambda ratio: ratio["median"])
        made.append(_ratio_row(f"to {peer}", lowest, RATIO_TO_OTHER_8_BIT_STEPS))
    return made


def _offload_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Every way of offloading that keeps a float32 master, beside DeepSpeed's best setting."""
    return [
        _ratio_row(f"offload, {row['way']}, to deepspeed's best", best, RATIO_TO_DEEPSPEED)
        for row in rows
        if (best := row["yardsticks"].get("deepspeed")) and row["way"] != "float32"
    ]


def _ratio_row(aim: str, summary: dict[str, float], least: float) -> list[str]:
    measured = three_digits(summary["median"])
    return [aim, three_digits(least), measured, _reached(summary, least)]


def _memory_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            f"bytes per parameter, {row['way']}",
            f"at most {three_digits(MOST_BYTES[row['way']])}",
            three_digits(row["resident"]),
            "yes" if row["resident"] <= MOST_BYTES[row["way"]] else "no",
        ]
        for row in rows
        if row["who"] == OURS and row["way"] in MOST_BYTES
    ]


def _at_most(aim: str, most: float, measured: float) -> list[str]:
    reached = "yes" if measured <= most else "no"
    return [aim, f"at most {format_seconds(most)}", format_seconds(measured), reached]
