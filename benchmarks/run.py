"""What ``fusedopt bench`` does: plans the cases, measures them, prints and saves the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from . import machine, report
from .peers import CONTESTS, COPY, NOT_TORCH, OURS, TOUCH, Factory, check
from .timing import Settings, Summary, Timing, clock_of, interleave, ratio, settings_for, summarize
from .workloads import GPU_WORKLOADS, WORKLOADS, Workload

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
}

# Small enough that values stay ordinary numbers over the many steps of a small workload, large
# enough that a velocity, which has it as a factor, is no subnormal number in float16.
LR = 1e-4

# Optimizers beside Adam, which runs on every workload.
_MORE = {
    "gpt2-124m": ("SGD", "Adagrad", "RMSprop", "Adadelta"),
    "mlp": ("SGD", "Adagrad", "RMSprop", "Adadelta"),
    "1000x64": ("SGD", "Adagrad", "RMSprop", "Adadelta"),
}
_MORE_GPU = {
    **_MORE,
    "one-256m": tuple(name for name in CONTESTS if name != "Adam"),
    "gpt2-124m": ("AdamW", *_MORE["gpt2-124m"]),
}
_MORE_QUICK = {"resnet-50": ("RMSprop", "Adadelta")}

DEVICES = ("cpu", "cuda")

# Two times within this fraction of each other are a tie.
_TIE = 0.03


class UnknownNameError(ValueError):
    """A workload, optimizer, dtype or device that there is not."""


def run(
    quick: bool = False,
    only: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    threads: int | None = None,
    dtype: str = "float32",
    json: Path | None = None,
    settings: Settings | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures, prints tables and returns what was measured, which ``json`` keeps.

    Args:
        quick: fewer cases and rounds, about a minute on two cores.
        only: names of workloads; all by default.
        optimizers: names of optimizers, each on every workload; by default Adam, and some others on
            some workloads.
        threads: number of threads of both sides; torch's own number by default.
        dtype: of parameters, gradients and states.
        json: file to write, or a folder in which a file named after the machine is written.
        settings: how much is measured, in place of what ``quick`` says.
        device: "cpu", or "cuda" for the current GPU.

    Raises:
        UnknownNameError: a workload, optimizer, dtype or device that there is not, or not here.
    """
    cases = plan(quick, only, optimizers, device)
    known(dtype, DTYPES)
    settings = settings or settings_for(device, quick)
    shown = {"quick": quick, "lr": LR, "dtype": dtype, "device": device}
    with torch_threads(threads):
        result = {
            **machine.describe(device),
            "threads": torch.get_num_threads(),
            "settings": {**asdict(settings), **shown},
            "cases": measure_all(cases, DTYPES[dtype], settings, device),
        }
    report.show(result)
    if json is not None:
        path = json / machine.file_name(result["machine"]) if json.is_dir() else json
        report.save(result, path)
    return result


def plan(
    quick: bool, only: Sequence[str], optimizers: Sequence[str], device: str = "cpu"
) -> list[tuple[Workload, list[str]]]:
    """The workloads to run and the optimizers to run on each."""
    on_gpu = known_device(device) == "cuda"
    workloads = GPU_WORKLOADS if on_gpu else WORKLOADS
    more = _MORE_QUICK if quick else _MORE_GPU if on_gpu else _MORE
    return [
        (
            known(name, workloads),
            [*optimizers] if optimizers else ["Adam", *more.get(name, ())],
        )
        for name in only or workloads
        if all(known(optimizer, CONTESTS) for optimizer in optimizers)
    ]


def known(name: str, table: dict[str, Any]) -> Any:
    """The entry of that name."""
    if name not in table:
        raise UnknownNameError(f"{name!r} is not one of {', '.join(table)}")
    return table[name]


def known_device(device: str) -> str:
    """The device, if this machine has it."""
    if device not in DEVICES:
        raise UnknownNameError(f"{device!r} is not one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UnknownNameError("'cuda': torch finds no usable GPU here")
    return device


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Sets the number of threads, which both sides obey, for as long as the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_all(
    cases: list[tuple[Workload, list[str]]], dtype: torch.dtype, settings: Settings, device: str
) -> list[dict[str, Any]]:
    """Every case, under a progress bar."""
    rows = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        all_cases = progress.add_task("cases", total=sum(len(names) for _, names in cases))
        rounds = progress.add_task("")
        for workload, names in cases:
            progress.update(rounds, description=f"{workload.name}: creating", total=None)
            groups = make_groups(workload, dtype, device)
            for name in names:
                progress.reset(rounds, description=f"{workload.name} {name}", total=None)

                def advance(done: int, total: int) -> None:
                    progress.update(rounds, completed=done, total=total)

                rows.append(measure_case(workload, name, groups, settings, advance))
                progress.advance(all_cases)
    return rows


def make_groups(
    workload: Workload, dtype: torch.dtype, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Parameter groups with normally distributed values and gradients, each with its own rate."""
    torch.manual_seed(0)
    groups = []
    for index, shapes in enumerate(workload.groups):
        params = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        groups.append({"params": params, "lr": LR * (1 + index / len(workload.groups))})
    return groups


def measure_case(
    workload: Workload,
    optimizer: str,
    groups: list[dict[str, Any]],
    settings: Settings,
    advance: Callable[[int, int], None],
    peers: dict[str, Factory] | None = None,
) -> dict[str, Any]:
    """Times one optimizer and its peers on one workload.

    Args:
        groups: what ``make_groups`` made; all peers step these same parameters.
        peers: who is timed, in place of all who can be.

    Returns:
        One row of the result; times in seconds a step.
    """
    contest = CONTESTS[optimizer]
    param = groups[0]["params"][0]
    device = param.device.type
    peers = peers or contest.peers(device)
    reasons = check(peers, param.dtype, device)
    steps = {
        name: factory([dict(group) for group in groups]).step
        for name, factory in peers.items()
        if name not in reasons
    }
    for step in steps.values():
        for _ in range(settings.warmup):
            step()
    timings = interleave(steps, settings, advance, clock_of(device))
    return {
        "workload": workload.name,
        "optimizer": optimizer,
        "tensors": workload.tensors,
        "elements": workload.elements,
        "groups": len(workload.groups),
        **derive(timings, contest.ideal_bytes(workload.elements, param.itemsize)),
        "peers": {name: describe_timing(timing) for name, timing in timings.items()},
        "not_timed": reasons,
    }


def describe_timing(timing: Timing) -> dict[str, Any]:
    """Seconds a step: median, quartiles and every round; on a GPU also the stream's median."""
    described = {**asdict(summarize(timing.seconds)), **asdict(timing)}
    if timing.stream_seconds:
        described["stream_median"] = summarize(timing.stream_seconds).median
    return described


def derive(timings: dict[str, Timing], ideal_bytes: int) -> dict[str, Any]:
    """What a row says about its timings."""
    ours = timings[OURS]
    theirs = {name: timing for name, timing in timings.items() if name not in NOT_TORCH}
    fastest = min(theirs, key=lambda name: summarize(theirs[name].seconds).median, default=None)
    speedup = ratio(theirs[fastest], ours) if fastest else None
    return {
        **(derive_copy(timings[COPY], ours, ideal_bytes) if COPY in timings else {}),
        "ideal_bytes": ideal_bytes,
        "bytes_per_second": ideal_bytes / summarize(ours.seconds).median,
        "share_of_touch": asdict(ratio(timings[TOUCH], ours)),
        "fastest_torch": fastest,
        "speedup": asdict(speedup) if speedup else None,
        "tie": speedup is not None and is_tie(speedup),
    }


def derive_copy(copy: Timing, ours: Timing, ideal_bytes: int) -> dict[str, Any]:
    """How a step compares with a copy that moves as many bytes."""
    return {
        "copy_bytes_per_second": ideal_bytes / summarize(copy.seconds).median,
        "share_of_copy": asdict(ratio(copy, ours)),
    }


def is_tie(speedup: Summary) -> bool:
    """Whether 1 is within the margin of the median, or between the quartiles."""
    between = speedup.lower_quartile <= 1 <= speedup.upper_quartile
    return between or abs(speedup.median - 1) <= _TIE
