"""How a step's time grows: with tensors, with elements, and how it falls with threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from ..contestants.contests import MAIN
from ..workloads.tensors import ELEMENTS, TENSORS, WORKLOADS, Workload
from .measure import (
    Advance,
    Conditions,
    bytes_available,
    bytes_needed,
    make_copies,
    make_groups,
    measure_case,
)
from .progress import Bars

# Where memory is the limit, where there is some work beside it, and where the host is.
THREAD_WORKLOADS = ("one-64m", "resnet-50", "3000x3500", "mlp")


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets the number of threads, which both sides obey, for as long as the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Steps of 1 to 10,000 tensors of a size."""
    return _family(TENSORS, conditions, bars)


def elements(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Steps of one tensor of 2^6 to 2^28 elements, as far as memory allows."""
    return _family(ELEMENTS, conditions, bars)


def threads(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Steps with 1, 2, 4 ... and all threads; each row says how many."""
    fewer = shorter(conditions)
    rows = []
    for name in THREAD_WORKLOADS:
        groups = make_groups(WORKLOADS[name], conditions.dtype, conditions.device)
        for count in _thread_counts(torch.get_num_threads()):
            bars.start(f"threads: {name}, {count}")
            with torch_threads(count):
                case = measure_case(WORKLOADS[name], MAIN, groups, fewer, bars.advance)
            rows.append({"threads": count, **case})
    return rows


def _thread_counts(most: int) -> list[int]:
    powers = [1 << power for power in range(most.bit_length())]
    return sorted({*(count for count in powers if count <= most), most})


def shorter(conditions: Conditions) -> Conditions:
    """Fewer rounds, of torch's default and its fastest implementation."""
    settings = conditions.settings
    settings = replace(
        settings,
        warmup=1,
        budget=settings.budget / 4,
        min_rounds=min(settings.min_rounds, 5),
    )
    default = "foreach" if conditions.device == "cuda" else "for-loop"
    return replace(conditions, settings=settings, peers=(default, "fused"))


def _family(workloads: list[Workload], conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    fewer = shorter(conditions)
    rows = []
    for workload in workloads:
        bars.start(workload.name)
        if bytes_needed(workload, MAIN, fewer) <= bytes_available(conditions.device):
            rows.append(_one(workload, fewer, bars.advance))
    return rows


def _one(workload: Workload, conditions: Conditions, advance: Advance) -> dict[str, Any]:
    groups = make_groups(workload, conditions.dtype, conditions.device)
    copies = make_copies(workload, conditions.dtype, conditions.device)
    return measure_case(workload, MAIN, groups, conditions, advance, copies=copies)
