"""Train a small network on scans of handwritten digits with every optimizer of fusedopt.

    pip install '.[examples]'
    python examples/train_digits.py

Each optimizer trains beside its counterpart in torch.optim, from the same weights on the same
batches. The table shows what the training reached and how long ``step()`` took in both.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import sklearn
import torch
import typer
from command_line import L1, EmaDecay, MaxGradNorm, known
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sequences import Sequence
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from fusedopt.checking.rows import ROWS, Row
from fusedopt.info import collect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer

EPOCHS = 20
BATCH_SIZE = 64
REQUIRED_ACCURACY = 0.95


OPTIMIZERS = {row.name: row for row in ROWS}

# What torch's fastest is sought among; not every optimizer has all.
TORCH_SETTINGS = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}

# Options for what is done around a step, in it or by torch's functions.
SEQUENCE = ("max_grad_norm", "l1", "ema_decay")

NOTE = (
    "Accuracy: on held-out scans. Loss: on the training set, at the end. Times: of step() alone, "
    "all steps in ms and the median of one in µs; torch is its fastest setting, which is named. "
    "Ratio: torch's median over fusedopt's."
)


def options_note() -> str:
    """Which optimizers are trained with an option that their names do not say."""
    names = [row.name for row in ROWS if lookahead(row)]
    return f"{', '.join(names)}: with Nesterov's momentum, here and in torch."


def twins_note() -> str:
    """Which optimizers are compared with another class of torch than that of their name."""
    said = []
    for row in filter(attrgetter("twin"), ROWS):
        twin, options = row.twin
        arguments = ", ".join(f"{name}={value}" for name, value in options.items())
        compared = "with" if said else "is compared with torch's"
        said.append(f"{row.name} {compared} {twin.__name__}({arguments})")
    return f"{', '.join(said)}."


@dataclass(frozen=True)
class Digits:
    """Standardised scans of shape (count, 64), float32, and their labels from 0 to 9, int64."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass
class Training:
    """A network with its optimizer, and what was recorded at every step."""

    model: nn.Module
    optimizer: Optimizer | Sequence
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """A row of the table."""

    optimizer: str
    lr: float
    accuracy: float
    loss: float
    steps: int
    total_ms: float
    step_us: float
    torch_setting: str
    torch_total_ms: float
    torch_step_us: float
    ratio: float


def load_data() -> Digits:
    """The 1797 scans that scikit-learn brings along, a fifth of them held out."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = split
    scaler = StandardScaler().fit(train_images)
    return Digits(
        torch.tensor(scaler.transform(train_images), dtype=torch.float32),
        torch.tensor(train_labels),
        torch.tensor(scaler.transform(test_images), dtype=torch.float32),
        torch.tensor(test_labels),
    )


def build_model(seed: int) -> nn.Module:
    """A network of two hidden layers; the same seed gives the same weights."""
    torch.manual_seed(seed)
    # A smooth activation: at the kink of a ReLU the last bit of a weight can decide whether a scan
    # has a gradient, and two trainings that differ by rounding would part there.
    return nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 10)
    )


def shuffled_batches(data: Digits, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """The training set in a new order, cut into batches."""
    order = torch.randperm(len(data.train_images), generator=generator)
    return [(data.train_images[i], data.train_labels[i]) for i in order.split(BATCH_SIZE)]


def train_epoch(training: Training, batches: list[tuple[Tensor, Tensor]]) -> None:
    """Trains on every batch once."""
    model, optimizer = training.model, training.optimizer
    for images, labels in batches:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(images), labels)
        loss.backward()
        start = time.perf_counter()
        optimizer.step()
        training.step_seconds.append(time.perf_counter() - start)
        training.losses.append(loss.item())


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean loss, and the fraction of scans that the network reads right."""
    with torch.no_grad():
        scores = model(images)
    loss = functional.cross_entropy(scores, labels).item()
    return loss, (scores.argmax(dim=1) == labels).float().mean().item()


def ready_to_evaluate(optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
    """A context in which the parameters are the trained ones, or their averages.

    While training, an optimizer may keep the parameters at a lookahead point.
    """
    averages = optimizer.param_groups[0].get("ema_decay") is not None
    place = "averaged" if averages else "at_iterate"
    return getattr(optimizer, place, contextlib.nullcontext)()


def lookahead(row: Row) -> dict[str, Any]:
    """Nesterov's momentum, where that is an option."""
    has_choice = "nesterov" in inspect.signature(row.optimizer).parameters
    return {"nesterov": True} if has_choice else {}


def start_trainings(
    row: Row, seed: int, asked_for: dict[str, Any] | None = None
) -> dict[str, Training]:
    """The same network once with our optimizer and once with each setting of torch's.

    What is asked for beside the step ours does in it, and torch's functions around it.
    """
    added = lookahead(row)
    optimizers = {"fusedopt": (row.optimizer, row.usual | added | (asked_for or {}))}
    twin, options = row.torch_twin
    for setting, option in TORCH_SETTINGS.items():
        if option.keys() <= inspect.signature(twin).parameters.keys():
            optimizers[setting] = (twin, options | option | added)
    trainings = {}
    for name, (optimizer_class, options) in optimizers.items():
        model = build_model(seed)
        optimizer = optimizer_class(model.parameters(), lr=row.lr, **options)
        if asked_for and name != "fusedopt":
            optimizer = Sequence(model, optimizer, **asked_for)
        trainings[name] = Training(model, optimizer)
    return trainings


def train_side_by_side(
    trainings: dict[str, Training], data: Digits, epochs: int, seed: int
) -> Iterator[int]:
    """Trains all on the same batches and yields the number of each epoch that has been done."""
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        batches = shuffled_batches(data, generator)
        # Taking turns, all see the machine equally busy.
        for training in trainings.values():
            train_epoch(training, batches)
        yield epoch + 1


def summarize(row: Row, trainings: dict[str, Training], data: Digits) -> Result:
    """The row of one optimizer, beside the fastest setting of torch."""
    ours = trainings["fusedopt"]
    with ready_to_evaluate(ours.optimizer):
        loss, _ = evaluate(ours.model, data.train_images, data.train_labels)
        _, accuracy = evaluate(ours.model, data.test_images, data.test_labels)
    seconds = {setting: training.step_seconds for setting, training in trainings.items()}
    medians = {setting: median(values) for setting, values in seconds.items()}
    fastest = min(medians.keys() - {"fusedopt"}, key=medians.__getitem__)
    return Result(
        optimizer=row.name,
        lr=row.lr,
        accuracy=accuracy,
        loss=loss,
        steps=len(ours.losses),
        total_ms=sum(seconds["fusedopt"]) * 1e3,
        step_us=medians["fusedopt"] * 1e6,
        torch_setting=fastest,
        torch_total_ms=sum(seconds[fastest]) * 1e3,
        torch_step_us=medians[fastest] * 1e6,
        ratio=medians[fastest] / medians["fusedopt"],
    )


def train_all(
    names: list[str], epochs: int, seed: int, asked_for: dict[str, Any] | None = None
) -> list[Result]:
    """Trains with the named optimizers, one after the other, under a progress bar for each."""
    data = load_data()
    columns = (
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs, loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
    )
    results = []
    # Without auto_refresh no other thread draws while a step is being timed.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as progress:
        for name in names:
            bar = progress.add_task(name, total=epochs, loss=float("nan"))
            trainings = start_trainings(OPTIMIZERS[name], seed, asked_for)
            for epoch in train_side_by_side(trainings, data, epochs, seed):
                loss = trainings["fusedopt"].losses[-1]
                progress.update(bar, completed=epoch, loss=loss, refresh=True)
            results.append(summarize(OPTIMIZERS[name], trainings, data))
    return results


def describe_machine() -> dict[str, str]:
    """Where and with which versions something was trained."""
    # The name of the kernel's build says nothing to others.
    machine = {name: value for name, value in collect().items() if name != "platform"}
    return machine | {"cores": str(os.cpu_count()), "scikit-learn": sklearn.__version__}


def make_report(results: list[Result], epochs: int, seed: int) -> dict[str, Any]:
    """The results with everything that is needed to repeat them, ready for JSON."""
    return {
        "machine": describe_machine(),
        "settings": {"epochs": epochs, "batch_size": BATCH_SIZE, "seed": seed},
        "results": [asdict(result) for result in results],
    }


def describe(report: dict[str, Any]) -> str:
    """Where and how the results came about, in one line."""
    machine, settings = report["machine"], report["settings"]
    options = {name: settings[name] for name in SEQUENCE if name in settings}
    asked_for = "".join(f"{name}={value:g}, " for name, value in options.items())
    return (
        f"{settings['epochs']} epochs in batches of {settings['batch_size']}, {asked_for}"
        f"threads: {machine['threads']}, {machine['processor']} with {machine['instruction set']}, "
        f"torch {machine['torch']}, fusedopt {machine['fusedopt']}."
    )


def format_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The cells of every row, by the heading of their column."""
    return [
        {
            "Optimizer": row["optimizer"],
            "lr": f"{row['lr']:g}",
            "Accuracy": f"{row['accuracy']:.3f}",
            "Loss": f"{row['loss']:.4f}",
            "step() ms": f"{row['total_ms']:.1f}",
            "step() µs": f"{row['step_us']:.1f}",
            "torch ms": f"{row['torch_total_ms']:.1f}",
            "torch µs": f"{row['torch_step_us']:.1f}",
            "torch setting": row["torch_setting"],
            "Ratio": f"{row['ratio']:.1f}",
        }
        for row in report["results"]
    ]


def print_table(report: dict[str, Any]) -> None:
    """Prints the results for a terminal."""
    rows = format_rows(report)
    table = Table(box=SIMPLE, padding=0, show_edge=False)
    for heading in rows[0]:
        table.add_column(
            heading,
            justify="left" if heading == "Optimizer" else "right",
            no_wrap=" " not in heading,
        )
    for row in rows:
        table.add_row(*row.values())
    console = Console()
    console.print(table)
    console.print(f"{describe(report)}\n{NOTE} {options_note()} {twins_note()}", highlight=False)


def print_markdown(report: dict[str, Any]) -> None:
    """Prints the results as Markdown, as the README shows them."""
    rows = format_rows(report)
    rules = ["---" if heading == "Optimizer" else "--:" for heading in rows[0]]
    for cells in (list(rows[0]), rules, *(row.values() for row in rows)):
        print(f"| {' | '.join(cells)} |")
    print(f"\n{describe(report)} {NOTE} {options_note()} {twins_note()}")


def main(
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training set.")] = EPOCHS,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTIMIZER", help=f"Repeatable; of {', '.join(OPTIMIZERS)}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and the batches.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; so small a network gains nothing from more.")
    ] = 1,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the table, machine and versions here.")
    ] = None,
    max_grad_norm: MaxGradNorm = None,
    l1: L1 = None,
    ema_decay: EmaDecay = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    markdown_from: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Print Markdown from such a JSON file; train nothing."
        ),
    ] = None,
) -> None:
    """Train on handwritten digits with every optimizer, beside torch.optim.

    The exit status is 1 if a training of full length ends with a held-out accuracy below 0.95.
    """
    if markdown_from is not None:
        print_markdown(json.loads(markdown_from.read_text()))
        return
    names = known(only, OPTIMIZERS, "--only")

    torch.set_num_threads(threads)
    options = {"max_grad_norm": max_grad_norm, "l1": l1, "ema_decay": ema_decay}
    asked_for = {name: value for name, value in options.items() if value is not None}
    results = train_all(names, epochs, seed, asked_for)
    report = make_report(results, epochs, seed)
    report["settings"] |= asked_for
    if json_path is not None:
        json_path.write_text(json.dumps(report, indent=2) + "\n")
    (print_markdown if markdown else print_table)(report)

    missed = [result.optimizer for result in results if result.accuracy < REQUIRED_ACCURACY]
    if epochs >= EPOCHS and missed:
        sys.exit(f"Held-out accuracy below {REQUIRED_ACCURACY}: {', '.join(missed)}")


if __name__ == "__main__":
    typer.run(main)
