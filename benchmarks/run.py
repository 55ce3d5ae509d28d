"""What ``fusedopt bench`` does: plans the cases, measures them, prints, saves and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fusedopt.names import UnknownNameError, find_name

from .contestants.contests import (
    ALL_PEERS,
    CONTESTS,
    DEFAULT_PEERS,
    MAIN,
    OTHERS_OF_TORCH,
    PEERS,
    TRAINED,
    UNFUSED,
)
from .measuring import costs, machine, resident, scaling, sequences, storage, training
from .measuring.measure import (
    LR,
    Conditions,
    Groups,
    LackOfMemoryError,
    bytes_available,
    bytes_needed,
    make_copies,
    make_groups,
    measure_case,
)
from .measuring.progress import Bars
from .measuring.timing import Settings, settings_for
from .reporting import report
from .workloads.tensors import GPU_WORKLOADS, LONG, WORKLOADS, Workload

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}

# What is measured beside the workloads; on a GPU, where asked for, the first two.
PARTS = {
    "tensors": scaling.tensors,
    "elements": scaling.elements,
    "threads": scaling.threads,
    "training": training.training,
    "sequences": sequences.sequences,
    "costs": costs.costs,
    "storage": storage.storage,
    "offload": storage.offload,
    "memory": resident.memory,
}
GPU_PARTS = {name: PARTS[name] for name in ("tensors", "elements")}

# Those that have dtypes of their own, whatever the run's is.
OF_OWN_DTYPES = ("sequences", "storage", "offload", "memory")

# Optimizers beside the main one, which runs on every workload.
_MORE = dict.fromkeys(
    ("gpt2-124m", "mlp", "1000x64", "resnet-50-bfloat16", "resnet-50-float16"), OTHERS_OF_TORCH
)
_MORE_GPU = {
    **_MORE,
    "one-256m": tuple(name for name in CONTESTS if name != MAIN),
    "gpt2-124m": (TRAINED, *OTHERS_OF_TORCH),
}
_MORE_QUICK = {"resnet-50": UNFUSED}

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Plan:
    """What is run: the optimizers of every workload, and the parts."""

    cases: list[tuple[Workload, list[str]]]
    parts: list[str]


def run(
    quick: bool = False,
    only: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    peers: Sequence[str] = (),
    threads: int | None = None,
    dtype: str = "float32",
    json: Path | None = None,
    plot: Path | None = None,
    settings: Settings | None = None,
    device: str = "cpu",
    aims: bool = False,
) -> dict[str, Any]:
    """Measures, prints tables and returns what was measured, which ``json`` keeps.

    Args:
        quick: fewer cases and rounds, about a minute on two cores.
        only: names of workloads and of ``PARTS``; all by default.
        optimizers: names of optimizers, each on every workload; by default MAIN, and some others on
            some workloads.
        peers: who is timed beside this package, names of ``PEERS`` or "all"; by default torch's
            for-loop, foreach and fused.
        threads: number of threads of both sides; torch's own number by default.
        dtype: of parameters, gradients and states. Workloads with a dtype of their own are measured
            beside those in float32, or where they are named.
        json: file to write, or a folder in which a file named after the machine is written.
        plot: folder in which pictures are written.
        settings: how much is measured, in place of what ``quick`` says.
        device: "cpu", or "cuda" for the current GPU.
        aims: also print how far the result is from what the package aims at.

    Raises:
        UnknownNameError: a workload, part, optimizer, peer, dtype or device that there is not, or
            not here.
    """
    device, dtype = known_device(device), find_name(dtype, DTYPES)
    chosen = plan(quick, only, optimizers, device, dtype)
    settings = settings or settings_for(device, quick)
    conditions = Conditions(settings, DTYPES[dtype], device, chosen_peers(peers), quick)
    if plot is not None:
        from .reporting import (
            plots,  # so that a missing package is known before anything is measured
        )
    shown = {"quick": quick, "lr": LR, "dtype": dtype, "device": device}
    with scaling.torch_threads(threads), Bars(len(chosen.parts)) as bars:
        described = machine.describe(device, conditions.peers)
        cases, skipped = measure_cases(chosen.cases, conditions, bars)
        rows, lacking = measure_parts(chosen.parts, conditions, bars)
        result = {
            **described,
            "threads": torch.get_num_threads(),
            "settings": {**asdict(settings), **shown},
            "cases": cases,
            "skipped": skipped + lacking,
            "parts": rows,
        }
    report.show(result, aims)
    if json is not None:
        path = json / machine.file_name(result["machine"]) if json.is_dir() else json
        report.save(result, path)
    if plot is not None:
        report.say(plots.draw_all(result, plot))
    return result


def plan(
    quick: bool,
    only: Sequence[str],
    optimizers: Sequence[str],
    device: str = "cpu",
    dtype: str = "float32",
) -> Plan:
    """The workloads to run, the optimizers to run on each, and the parts."""
    on_gpu = known_device(device) == "cuda"
    workloads = GPU_WORKLOADS if on_gpu else WORKLOADS
    parts = GPU_PARTS if on_gpu else PARTS
    more = _MORE_QUICK if quick else _MORE_GPU if on_gpu else _MORE
    optimizers = [find_name(name, CONTESTS) for name in optimizers]
    only = [find_name(name, (*workloads, *parts)) for name in only]
    names = [name for name in only if name in workloads] if only else [*workloads]
    if quick and not only:
        names = [name for name in names if name not in LONG]
    if dtype != "float32" and not only:
        names = [name for name in names if workloads[name].dtype is None]
    everything = not (only or optimizers or quick or on_gpu)
    of_the_run = [name for name in parts if name not in OF_OWN_DTYPES or dtype == "float32"]
    return Plan(
        [(workloads[name], optimizers or [MAIN, *more.get(name, ())]) for name in names],
        [name for name in parts if name in only or (everything and name in of_the_run)],
    )


def known_device(device: str) -> str:
    """The device, if this machine has it."""
    device = find_name(device, DEVICES)
    if device == "cuda" and not torch.cuda.is_available():
        raise UnknownNameError("'cuda': torch finds no usable GPU here")
    return device


def chosen_peers(names: Sequence[str]) -> tuple[str, ...]:
    """Those who are timed beside this package, each once."""
    table = {**{name: (name,) for name in PEERS}, "all": ALL_PEERS}
    chosen = [peer for name in names for peer in table[find_name(name, table)]]
    return tuple(dict.fromkeys(chosen)) or DEFAULT_PEERS


def measure_cases(
    cases: list[tuple[Workload, list[str]]], conditions: Conditions, bars: Bars
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for every case, and a line for every one for which there is not the memory."""
    bars.grow(sum(len(names) for _, names in cases))
    rows, skipped = [], []
    of_the_run = conditions
    for workload, names in cases:
        conditions = of_the_run
        if workload.dtype is not None:
            conditions = replace(of_the_run, dtype=DTYPES[workload.dtype])
        bars.start(f"{workload.name}: creating")
        groups: Groups = []
        copies: list[Groups] = []
        for name in names:
            needed = bytes_needed(workload, name, conditions)
            there = bytes_available(conditions.device) + sum(
                param.nbytes * 2 for group in groups for param in group["params"]
            )
            if needed > there:
                skipped.append(str(LackOfMemoryError(f"{workload.name}, {name}", needed, there)))
            else:
                if not groups:
                    groups = make_groups(workload, conditions.dtype, conditions.device)
                    copies = make_copies(workload, conditions.dtype, conditions.device)
                bars.start(f"{workload.name} {name}")
                row = measure_case(workload, name, groups, conditions, bars.advance, copies=copies)
                rows.append(row)
            bars.finish()
    return rows, skipped


def measure_parts(
    names: list[str], conditions: Conditions, bars: Bars
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """The rows of every part, and a line for every one for which there is not the memory."""
    parts, skipped = {}, []
    for name in names:
        try:
            parts[name] = PARTS[name](conditions, bars)
        except LackOfMemoryError as error:
            skipped.append(str(error))
        bars.finish()
    return parts, skipped
