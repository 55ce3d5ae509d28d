"""What comes before the steady state: import, construction, states, memory."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..contestants.contests import CONTESTS, MAIN, OURS
from ..contestants.others import Factory
from ..workloads.tensors import WORKLOADS, equal_tensors
from .measure import Conditions, make_groups
from .progress import Bars

# Construction and first step, of a model with as many tensors as large ones have.
MANY = equal_tensors(10_000, 64)

MEMORY_WORKLOAD = "resnet-50"

# The package asks for torch, so its own time is what its import takes after torch's. The modules
# of the standard library that only one of the two needs count for that one.
_IMPORT = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import fusedopt
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""


def costs(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Rows of what is measured, who, and how much, in seconds or in bytes per parameter."""
    return [
        *import_times(7, bars),
        *first_steps(conditions, bars),
        *peak_memory(conditions, bars),
    ]


def import_times(runs: int, bars: Bars) -> list[dict[str, Any]]:
    """Medians over fresh interpreters; the first, which may compile and read files, not counted."""
    bars.start("import")
    seconds = []
    for run in range(runs + 1):
        seconds.append(json.loads(run_python("-c", _IMPORT)))
        bars.advance(run + 1, runs + 1)
    torchs, ours = zip(*seconds[1:], strict=True)
    return [
        _row("import", "torch", statistics.median(torchs)),
        _row("import, beside torch", OURS, statistics.median(ours)),
    ]


def first_steps(conditions: Conditions, bars: Bars, rounds: int = 9) -> list[dict[str, Any]]:
    """Construction over 10,000 parameters, and the first step, which creates their states."""
    groups = make_groups(MANY, conditions.dtype, conditions.device)
    peers = CONTESTS[MAIN].peers(conditions.device)
    peers = {name: factory for name, factory in peers.items() if name not in ("touch", "copy")}
    constructed: dict[str, list[float]] = {name: [] for name in peers}
    stepped: dict[str, list[float]] = {name: [] for name in peers}
    bars.start("construction")
    for round_ in range(rounds):
        for name, factory in peers.items():
            gc.collect()  # or somebody would clear away what others have left
            make = partial(factory, [dict(group) for group in groups])
            optimizer, seconds = _timed(make)
            constructed[name].append(seconds)
            stepped[name].append(_timed(optimizer.step)[1])
        bars.advance(round_ + 1, rounds)
    parts = {"construction, 10,000 tensors": constructed, "first step, 10,000 x 64": stepped}
    return [
        _row(what, name, statistics.median(times))
        for what, of_peers in parts.items()
        for name, times in of_peers.items()
    ]


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def peak_memory(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """What two steps add to the resident memory of a process at most, per parameter."""
    bars.start("peak memory")
    dtype = str(conditions.dtype).removeprefix("torch.")
    rows = []
    names = [name for name in CONTESTS[MAIN].peers(conditions.device) if name != "touch"]
    for done, name in enumerate(names, start=1):
        bytes_added = json.loads(run_python("-m", __name__, name, dtype))
        elements = WORKLOADS[MEMORY_WORKLOAD].elements
        row = _row(f"peak memory of a step, {MEMORY_WORKLOAD}", name, bytes_added / elements)
        rows.append({**row, "unit": "bytes/parameter"})
        bars.advance(done, len(names))
    return rows


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints last."""
    command = [sys.executable, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.strip().rpartition("\n")[2]


def _row(what: str, who: str, value: float) -> dict[str, Any]:
    return {"what": what, "who": who, "value": value, "unit": "seconds"}


def added_memory(factory: Factory, groups: list[dict[str, Any]]) -> int:
    """By how many bytes two steps raise this process's resident memory at most.

    Construction is included; parameters and gradients were there before.
    """
    forget_peak()
    before = resident_bytes()
    optimizer = factory(groups)
    for _ in range(2):
        optimizer.step()
    return resident_bytes(at_most=True) - before


def forget_peak() -> None:
    """Sets the high-water mark of this process's memory to what is resident."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(at_most: bool = False) -> int:
    """Bytes of this process's memory that are resident, or were at most."""
    key = "VmHWM" if at_most else "VmRSS"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def main(name: str, dtype: str) -> None:
    """Prints what a peer's step adds to the memory of this process, in bytes."""
    import torch

    groups = make_groups(WORKLOADS[MEMORY_WORKLOAD], getattr(torch, dtype))
    factory = CONTESTS[MAIN].peers()[name]
    factory([{**groups[0], "params": groups[0]["params"][:1]}]).step()  # starts the threads
    print(added_memory(factory, groups))


if __name__ == "__main__":
    main(*sys.argv[1:])
