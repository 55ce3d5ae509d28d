"""Time whole training steps with each way to clear gradients.

    pip install '.[examples]'
    python examples/which_zero_grad.py --json times.json

Gradients are set to None, set to zero in memory, or not cleared at all, so that they add up: that
is what a step would take if it cleared them for nothing. Each model, way and setting of the
allocator has processes of its own, in turns, because what a process has freed decides how fast it
allocates.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import nn

import fusedopt
from fusedopt.benchmarks.measuring.machine import describe
from fusedopt.benchmarks.workloads.models import MODELS, Transformer

if TYPE_CHECKING:
    from collections.abc import Callable

Batch = tuple[torch.Tensor, torch.Tensor]


def wide_layers() -> nn.Module:
    """Four weights of 64 MB, whose gradients are larger than what glibc keeps when it is freed."""
    return nn.Sequential(*(nn.Linear(4096, 4096, bias=False) for _ in range(4)))


# Name: the model, a batch, and how many steps a process times.
TRAINED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batch], int]] = {
    "MLP, 1 MB": (*MODELS["MLP"], 300),
    "transformer, 51 MB": (lambda: Transformer(width=512), MODELS["transformer"][1], 8),
    "4 wide layers, 256 MB": (
        wide_layers,
        lambda: (torch.randn(8, 4096), torch.randint(4096, (8,))),
        8,
    ),
}
CLEARED: dict[str, Callable[[torch.optim.Optimizer], None]] = {
    "to None": lambda optimizer: optimizer.zero_grad(set_to_none=True),
    "to zero": lambda optimizer: optimizer.zero_grad(set_to_none=False),
    "not at all": lambda optimizer: None,
}
ALLOCATORS = {
    "as it is": {},
    "huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
    "glibc keeps all": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "30000000000"},
}
USUAL, IN_MEMORY, FOR_NOTHING = CLEARED


@dataclass(frozen=True)
class Setting:
    """What processes of one kind time."""

    model: str
    allocator: str
    cleared: str


@dataclass(frozen=True)
class Result:
    """What processes of one kind have found: each one's median seconds and page faults per step."""

    model: str
    allocator: str
    cleared: str
    seconds: list[float]
    faults: list[float]


def measure(model_name: str, cleared: str, steps: int | None = None) -> tuple[float, float]:
    """Trains, and returns the median seconds of a step, and the page faults of one."""
    make, batch, usual_steps = TRAINED[model_name]
    steps = steps or usual_steps
    torch.manual_seed(0)
    model, (inputs, targets), clear = make(), batch(), CLEARED[cleared]
    # At this rate gradients stay what they are. foreach=True zeroes them in one call.
    optimizer = fusedopt.AdamW(model.parameters(), lr=1e-9, foreach=True)
    seconds = []
    for step in range(-steps // 3, steps):
        if step == 0:
            faults = page_faults()
        start = time.perf_counter()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        clear(optimizer)
        if step >= 0:
            seconds.append(time.perf_counter() - start)
    return median(seconds), (page_faults() - faults) / steps


def page_faults() -> int:
    """So often this process has touched memory that it had not got yet."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure_apart(setting: Setting) -> tuple[float, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", setting.model, setting.cleared]
    environment = {**os.environ, **ALLOCATORS[setting.allocator]}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    seconds, faults = json.loads(run.stdout)
    return seconds, faults


def measure_all(models: list[str], rounds: int) -> list[Result]:
    """Every setting once per round, in an order that rotates, under a progress bar."""
    settings = [Setting(*names) for names in product(models, ALLOCATORS, CLEARED)]
    turns = [
        setting
        for index in range(rounds)
        for setting in settings[index % len(settings) :] + settings[: index % len(settings)]
    ]
    found: dict[Setting, list[tuple[float, float]]] = {setting: [] for setting in settings}
    for setting in track(turns, "processes", console=Console(stderr=True)):
        found[setting].append(measure_apart(setting))
    return [
        Result(*asdict(setting).values(), *map(list, zip(*pairs, strict=True)))
        for setting, pairs in found.items()
    ]


def ratios(results: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Of each model and allocator: the time of each way over that of None, round by round."""
    seconds = {(r["model"], r["allocator"], r["cleared"]): r["seconds"] for r in results}
    return {
        (model, allocator): {
            way: median(
                mine / usual
                for mine, usual in zip(
                    seconds[model, allocator, way], seconds[model, allocator, USUAL], strict=True
                )
            )
            for way in CLEARED
        }
        for model, allocator in dict.fromkeys((r["model"], r["allocator"]) for r in results)
    }


def table(report: dict[str, Any]) -> str:
    """Times, ratios and page faults, in Markdown."""
    results = report["results"]
    found = {(r["model"], r["allocator"], r["cleared"]): r for r in results}
    headings = ["gradients of", "allocator", *CLEARED, "zero / None", "not at all / None", "faults"]
    lines = [headings, ["---", "---", *["---:"] * 6]]
    for (model, allocator), of in ratios(results).items():
        times = [median(found[model, allocator, way]["seconds"]) for way in CLEARED]
        faults = [median(found[model, allocator, way]["faults"]) for way in (USUAL, IN_MEMORY)]
        lines.append(
            [
                model,
                allocator,
                *(f"{1e3 * seconds:.3g} ms" for seconds in times),
                f"{of[IN_MEMORY]:.2f}",
                f"{of[FOR_NOTHING]:.2f}",
                " / ".join(f"{count:,.0f}" for count in faults),
            ]
        )
    machine = report["machine"]
    note = (
        f"{machine['processor']}, {machine['cores']} cores, torch {report['torch']}, "
        f"{report['rounds']} processes each. Median time of a training step; ratios are taken "
        "round by round. faults: page faults of a step, with None and with zeros."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{note}"


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Processes of each setting.")] = 5,
    only: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="The beginning of a model's name.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write times, machine and versions here.")
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="Read such a file, time nothing."),
    ] = None,
) -> None:
    """Time whole training steps with each way to clear gradients."""
    if read is not None:
        report = json.loads(read.read_text())
    else:
        models = [name for name in TRAINED if not only or name.startswith(tuple(only))]
        described = describe()
        report = {
            "machine": described["machine"],
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "results": [asdict(result) for result in measure_all(models, rounds)],
        }
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3])))
    else:
        typer.run(main)
