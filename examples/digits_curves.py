"""Training curves on handwritten digits: every optimizer under every learning-rate schedule.

    pip install '.[examples,plots]'
    python examples/digits_curves.py --plot curves

The network, its data and the learning rates are those of ``train_digits.py``. The schedules are
torch's, stepped once an epoch. A curve is the mean over several seeds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import train_digits as digits
import typer
from command_line import known
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, StepLR

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.optim.lr_scheduler import LRScheduler

    from fusedopt.plotting.style import Theme

# Schedule: a function of the optimizer and the number of epochs.
SCHEDULES = {
    "constant": lambda optimizer, _: LambdaLR(optimizer, lambda epoch: 1.0),
    "step": lambda optimizer, epochs: StepLR(optimizer, max(1, epochs // 3), gamma=0.2),
    "cosine": lambda optimizer, epochs: CosineAnnealingLR(optimizer, epochs),
    "linear": lambda optimizer, epochs: LinearLR(optimizer, 1.0, 0.0, epochs),
    "inverse square root": lambda optimizer, _: LambdaLR(
        optimizer, lambda epoch: (1 + epoch) ** -0.5
    ),
}


@dataclass(frozen=True)
class Curve:
    """One line of the picture, with a value an epoch.

    ``lr``: the rate during the epoch; ``loss``: the mean over its batches; ``accuracy``: of
    held-out scans, at its end. Loss and accuracy are means over seeds.
    """

    schedule: str
    optimizer: str
    lr: list[float]
    loss: list[float]
    accuracy: list[float]


def start(optimizer: str, schedule: str, epochs: int, seed: int) -> tuple[digits.Training, Any]:
    """A network with its optimizer, and the schedule of its learning rate."""
    row = digits.OPTIMIZERS[optimizer]
    model = digits.build_model(seed)
    options = row.usual | digits.lookahead(row)
    training = digits.Training(model, row.optimizer(model.parameters(), lr=row.lr, **options))
    return training, SCHEDULES[schedule](training.optimizer, epochs)


def train(
    training: digits.Training, scheduler: LRScheduler, data: digits.Digits, epochs: int, seed: int
) -> tuple[list[float], list[float], list[float]]:
    """Rates, losses and accuracies of one training, as :class:`Curve` has them."""
    generator = torch.Generator().manual_seed(seed)
    rates, losses, accuracies = [], [], []
    for _ in range(epochs):
        batches = digits.shuffled_batches(data, generator)
        rates.append(scheduler.get_last_lr()[0])
        digits.train_epoch(training, batches)
        scheduler.step()
        losses.append(sum(training.losses[-len(batches) :]) / len(batches))
        with digits.ready_to_evaluate(training.optimizer):
            _, accuracy = digits.evaluate(training.model, data.test_images, data.test_labels)
        accuracies.append(accuracy)
    return rates, losses, accuracies


def train_all(schedules: list[str], optimizers: list[str], epochs: int, seeds: int) -> list[Curve]:
    """The curve of each optimizer under each schedule, under a progress bar."""
    data = digits.load_data()
    curves = []
    pairs = list(product(schedules, optimizers))
    for schedule, optimizer in track(pairs, "training", console=Console(stderr=True)):
        runs = []
        for seed in range(seeds):
            training, scheduler = start(optimizer, schedule, epochs, seed)
            runs.append(train(training, scheduler, data, epochs, seed))
        lr, loss, accuracy = torch.tensor(runs, dtype=torch.float64).mean(dim=0).tolist()
        curves.append(Curve(schedule, optimizer, lr, loss, accuracy))
    return curves


def draw(report: dict[str, Any], theme: Theme) -> Figure:
    """A column a schedule: its learning rate, the losses and the accuracies."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from fusedopt.plotting.trajectories.drawing import style_of

    curves = report["results"]
    schedules = list(dict.fromkeys(curve["schedule"] for curve in curves))
    epochs = range(1, report["settings"]["epochs"] + 1)
    figure = Figure(figsize=(2.4 * len(schedules) + 1, 7.5), layout="constrained")
    panels = figure.subplots(
        3, len(schedules), sharex=True, sharey="row", squeeze=False, height_ratios=(0.35, 1, 1)
    )
    for curve in curves:
        rate, loss, accuracy = panels[:, schedules.index(curve["schedule"])]
        style = style_of(curve["optimizer"], theme)
        line = {"color": style.colour, "ls": style.line, "marker": style.marker, "ms": 4.5}
        line |= {"markevery": 4, "lw": 1.5, "label": curve["optimizer"]}
        loss.plot(epochs, curve["loss"], **line)
        accuracy.plot(epochs, curve["accuracy"], **line)
        if not rate.lines:
            share = [value / curve["lr"][0] for value in curve["lr"]]
            rate.plot(epochs, share, color=theme.foreground, ls=":", marker=".")
            rate.set_title(curve["schedule"])
    labels = ("learning rate,\nof the first", "training loss", "held-out accuracy")
    for axes, label in zip(panels[:, 0], labels, strict=True):
        axes.set_ylabel(label)
    panels[0, 0].set_ylim(0, 1.1)
    panels[1, 0].set_yscale("log")
    panels[2, 0].set_ylim(bottom=0.93)
    panels[2, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panels[2, len(schedules) // 2].set_xlabel("epoch")
    handles, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def print_table(report: dict[str, Any]) -> None:
    """Prints loss and accuracy at the end."""
    rows: dict[str, dict[str, str]] = {}
    for curve in report["results"]:
        cell = f"{curve['loss'][-1]:.4f} {curve['accuracy'][-1]:.3f}"
        rows.setdefault(curve["optimizer"], {})[curve["schedule"]] = cell
    table = Table("Optimizer", *next(iter(rows.values())), box=SIMPLE, show_edge=False)
    for optimizer, cells in rows.items():
        table.add_row(optimizer, *cells.values())
    console = Console()
    console.print(table)
    console.print(
        f"{digits.describe(report)} Training loss and held-out accuracy of the last epoch, "
        f"mean of {report['settings']['seeds']} seeds.",
        highlight=False,
    )


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data.")] = digits.EPOCHS,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIMIZER", help=f"Repeatable; of {', '.join(digits.OPTIMIZERS)}."),
    ] = None,
    schedule: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; of {', '.join(SCHEDULES)}.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings that a curve is the mean of.")] = 10,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write curves, machine and versions here.")
    ] = None,
    read: Annotated[
        Path | None,
        typer.Option("--from", exists=True, dir_okay=False, help="Read such a file, do not train."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write digits-curves-light.svg and -dark.svg here."),
    ] = None,
) -> None:
    """Train on handwritten digits with every optimizer under every learning-rate schedule."""
    optimizers, schedules = known(only, digits.OPTIMIZERS), known(schedule, SCHEDULES)
    if read is not None:
        report = json.loads(read.read_text())
    else:
        torch.set_num_threads(1)  # so small a network gains nothing from more
        curves = train_all(schedules, optimizers, epochs, seeds)
        report = digits.make_report(curves, epochs, seed=0)
        report["settings"]["seeds"] = seeds
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)
    if plot is not None:
        from fusedopt.plotting.style import save_themed

        plot.mkdir(parents=True, exist_ok=True)
        for path in save_themed(lambda theme: draw(report, theme), plot, "digits-curves"):
            print(path)


if __name__ == "__main__":
    typer.run(main)
