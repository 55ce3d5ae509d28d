"""Train three small networks with parameters and states stored in fewer bytes.

    pip install '.[examples,plots]'
    python examples/fewer_bytes.py --plot pictures

Each optimizer trains each network from the same weights, on the same batches, under each way to
store parameters and states, with several seeds and a learning rate that falls to zero in equal
steps. Forward and backward are computed in float32 from what is stored, so storing is the only
difference. The table says which ways end within the spread over the seeds of float32.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice, product
from math import inf, isnan
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import torch
import train_digits as digits
import typer
from command_line import known
from rich.console import Console
from rich.progress import track
from small_networks import OPTIMIZERS, TASKS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fusedopt.plotting.style import Theme

# Way: the dtype of the parameters, and the options of the optimizer.
WAYS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "float32, 16-bit states": (torch.float32, {"state_bits": 16}),
    "float32, 8-bit states": (torch.float32, {"state_bits": 8}),
    "bfloat16": (torch.bfloat16, {}),
    "bfloat16, master": (torch.bfloat16, {"master_weights": True, "state_bits": 32}),
    "bfloat16, master, 8-bit states": (torch.bfloat16, {"master_weights": True, "state_bits": 8}),
    "bfloat16, stochastic, 16-bit states": (
        torch.bfloat16,
        {"stochastic_rounding": True, "state_bits": 16},
    ),
}
USUAL = "float32"


@dataclass(frozen=True)
class Training:
    """One network trained with one optimizer in one way, from one seed."""

    task: str
    optimizer: str
    way: str
    steps: int
    lr: float
    seed: int


@dataclass(frozen=True)
class Result:
    """What trainings that differ in their seeds alone came to.

    ``losses``: for each seed the mean over the last tenth of the steps, of batches that the
    network had not seen yet in that step.
    """

    task: str
    optimizer: str
    way: str
    steps: int
    lr: float
    losses: list[float]


def final_loss(training: Training) -> float:
    """Trains, and returns the loss of :class:`Result`."""
    task, row = TASKS[training.task], digits.OPTIMIZERS[training.optimizer]
    dtype, options = WAYS[training.way]
    torch.manual_seed(training.seed)
    model, batches = task.start(torch.Generator().manual_seed(training.seed))
    weights = list(model.parameters())
    stored = [weight.detach().to(dtype).requires_grad_() for weight in weights]
    optimizer = row.optimizer(stored, lr=training.lr, **row.usual, **options)
    losses = []
    for step, (inputs, targets) in enumerate(islice(batches, training.steps)):
        with torch.no_grad():
            for weight, param in zip(weights, stored, strict=True):
                weight.copy_(param)
        loss = task.loss(model(inputs), targets)
        for param, grad in zip(stored, torch.autograd.grad(loss, weights), strict=True):
            param.grad = grad.to(dtype)
        optimizer.param_groups[0]["lr"] = training.lr * (1 - step / training.steps)
        optimizer.step()
        losses.append(loss.item())
    return mean(losses[-max(1, training.steps // 10) :])


def train_all(
    tasks: list[str], optimizers: list[str], seeds: int, shorter: int, workers: int
) -> list[Result]:
    """All trainings, in so many processes of one thread each, under a progress bar."""
    kinds = [
        (task, optimizer, way, max(1, TASKS[task].steps // shorter), TASKS[task].rates[optimizer])
        for task, optimizer, way in product(tasks, optimizers, WAYS)
    ]
    trainings = [Training(*kind, seed) for kind in kinds for seed in range(seeds)]
    # So small a network gains nothing from a second thread.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, torch.set_num_threads, (1,)) as pool:
        done = pool.map(final_loss, trainings)
        total, console = len(trainings), Console(stderr=True)
        losses = list(track(done, "training", total=total, console=console))
    return [
        Result(*kind, losses[start : start + seeds])
        for kind, start in zip(kinds, range(0, len(losses), seeds), strict=True)
    ]


def titles(report: dict[str, Any]) -> dict[str, str]:
    """What the tasks are, and how long they are trained."""
    steps = {result["task"]: result["steps"] for result in report["results"]}
    return {task: f"{TASKS[task].title}, {steps[task]:,} steps" for task in steps}


@dataclass(frozen=True)
class Standing:
    """How a way ends beside float32.

    ``ratio``: its mean loss over that of float32, minus 1. ``where``: its mean loss is within the
    losses of float32's seeds, or higher or lower than all of them; one that is NaN is higher.
    """

    ratio: float
    where: str

    @property
    def distance(self) -> float:
        """From float32's mean, as a share of it."""
        return inf if isnan(self.ratio) else abs(self.ratio)

    def __str__(self) -> str:
        text = "NaN" if isnan(self.ratio) else f"{self.ratio:+.1%}"
        return text if self.where == "within" else f"**{text}**"


def compare(results: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Standing]]:
    """The standing of each way, for each task and optimizer."""
    losses = {(r["task"], r["optimizer"], r["way"]): r["losses"] for r in results}
    compared: dict[tuple[str, str], dict[str, Standing]] = {}
    for (task, optimizer, way), values in losses.items():
        usual = losses[task, optimizer, USUAL]
        where = "within" if mean(values) <= max(usual) else "higher"
        where = "lower" if mean(values) < min(usual) else where
        standing = Standing(mean(values) / mean(usual) - 1, where)
        compared.setdefault((task, optimizer), {})[way] = standing
    return compared


def as_markdown(headings: list[str], rows: list[list[str]], texts: int) -> str:
    """A table, whose columns are numbers but for the first ones, which are texts."""
    rules = ["---"] * texts + ["--:"] * (len(headings) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def summary(report: dict[str, Any]) -> str:
    """How often each way ends within the spread of float32, higher and lower; and how far off."""
    places = ("within", "higher", "lower")
    compared = compare(report["results"])
    rows = []
    for way in [way for way in WAYS if way != USUAL]:
        standings = {key: ways[way] for key, ways in compared.items()}
        found = [standing.where for standing in standings.values()]
        task, optimizer = max(standings, key=lambda key: standings[key].distance)
        furthest = f"{TASKS[task].title}, {optimizer}: {standings[task, optimizer]}"
        rows.append([way, furthest, *(str(found.count(place)) for place in places)])
    return as_markdown(["", "furthest from float32", *places], rows, texts=2)


def details(report: dict[str, Any]) -> str:
    """The losses of float32, the other ways beside them, and how that came about."""
    ways = [way for way in WAYS if way != USUAL]
    losses = {
        (r["task"], r["optimizer"]): r["losses"] for r in report["results"] if r["way"] == USUAL
    }
    rows = []
    for (task, optimizer), standings in compare(report["results"]).items():
        usual = losses[task, optimizer]
        spread = f"{mean(usual):.3g} ({min(usual):.3g} to {max(usual):.3g})"
        cells = [titles(report)[task], optimizer, spread]
        rows.append([*cells, *(str(standings[way]) for way in ways)])
    machine, seeds = report["machine"], report["settings"]["seeds"]
    note = (
        f"{seeds} seeds, {machine['processor']} with {machine['instruction set']}, "
        f"torch {machine['torch']}, fusedopt {machine['fusedopt']}, Python {machine['python']}. "
        "float32: the mean final loss, and the lowest and the highest of the seeds. Others: their "
        "mean against that of float32; bold if it is not between its lowest and its highest."
    )
    return as_markdown(["", "Optimizer", USUAL, *ways], rows, texts=2) + f"\n\n{note}"


def draw(report: dict[str, Any], theme: Theme) -> Figure:
    """Final losses of all seeds, by the way: a row for each task, a column for each optimizer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from fusedopt.plotting.style import COLOURS

    looks = {
        "within": (COLOURS[0], "|"),
        "higher": (COLOURS[5], "x"),
        "lower": (COLOURS[2], "+"),
    }
    compared = compare(report["results"])
    tasks = list(titles(report))
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in compared))
    figure = Figure(figsize=(2.3 * len(optimizers) + 2, 2.5 * len(tasks)), layout="constrained")
    panels = figure.subplots(len(tasks), len(optimizers), sharey=True, squeeze=False)
    for result in report["results"]:
        task, optimizer, way = result["task"], result["optimizer"], result["way"]
        axes = panels[tasks.index(task), optimizers.index(optimizer)]
        losses = result["losses"]
        height = list(WAYS).index(way)
        colour, marker = looks[compared[task, optimizer][way].where]
        axes.plot(losses, [height] * len(losses), ".", color=colour, alpha=0.8, ms=4)
        axes.plot(mean(losses), height, marker, color=colour, ms=9, mew=2)
        if way == USUAL:
            axes.axvspan(min(losses), max(losses), color=theme.grid, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    panels[0, 0].set_yticks(range(len(WAYS)), WAYS)
    panels[0, 0].invert_yaxis()
    for axes, optimizer in zip(panels[0], optimizers, strict=True):
        axes.set_title(optimizer)
    for row, task in zip(panels, tasks, strict=True):
        row[len(row) // 2].set_xlabel(f"final loss: {titles(report)[task]}")
    return figure


def main(
    task: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; of {', '.join(TASKS)}.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIMIZER", help=f"Repeatable; of {', '.join(OPTIMIZERS)}."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings that differ in the seed.")] = 5,
    shorter: Annotated[int, typer.Option(min=1, help="Divide the numbers of steps by this.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at a time.")] = 2,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write losses, machine and versions here.")
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="Read such a file, do not train."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write fewer-bytes-light.svg and -dark.svg here."),
    ] = None,
) -> None:
    """Train three small networks with parameters and states stored in fewer bytes."""
    tasks, optimizers = known(task, TASKS), known(only, OPTIMIZERS)
    if read is not None:
        report = json.loads(read.read_text())
    else:
        results = train_all(tasks, optimizers, seeds, shorter, workers)
        report = {
            "machine": digits.describe_machine(),
            "settings": {"seeds": seeds, "shorter": shorter},
            "results": [asdict(result) for result in results],
        }
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{summary(report)}\n\n{details(report)}")
    if plot is not None:
        from fusedopt.plotting.style import save_themed

        plot.mkdir(parents=True, exist_ok=True)
        for path in save_themed(lambda theme: draw(report, theme), plot, "fewer-bytes"):
            print(path)


if __name__ == "__main__":
    typer.run(main)
