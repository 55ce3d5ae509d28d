"""Selects features with ``l1``: the lasso's path on medical data, by fusedopt.SGD.

Ten measurements of 442 patients predict how diabetes proceeds. Beside them stand ten columns that
say nothing: the same ones, shuffled among the patients. The larger the penalty, the more weights
are exactly zero. With full batches and no momentum, SGD with ``l1`` is ISTA (Daubechies, Defrise,
De Mol, 2004), so the weights are those of scikit-learn's Lasso.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

import fusedopt

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from fusedopt.plotting.style import Theme

STEPS = 3000
PENALTIES = tuple(np.geomspace(0.01, 1.0, 41))


@dataclass(frozen=True)
class Data:
    """Standardised features of shape (patients, features), and what is to be predicted."""

    names: tuple[str, ...]
    features: NDArray[np.float64]
    targets: NDArray[np.float64]


def load_data() -> Data:
    """The measurements that scikit-learn brings along, and as many columns that say nothing."""
    bunch: Any = load_diabetes()
    shuffled = np.random.default_rng(0).permuted(bunch.data, axis=0)
    features = StandardScaler().fit_transform(np.hstack([bunch.data, shuffled]))
    targets = StandardScaler().fit_transform(bunch.target[:, None])[:, 0]
    names = (*bunch.feature_names, *(f"{name} shuffled" for name in bunch.feature_names))
    return Data(names, features, targets)


def weights_of(data: Data, penalties: tuple[float, ...], steps: int) -> NDArray[np.float64]:
    """The weights of linear models, one for each penalty, all trained by one optimizer.

    Each model is a parameter group with an ``l1`` of its own. It minimises
    ``mean(error^2) / 2 + l1 * sum(abs(weights))``.

    Returns:
        An array of shape (penalties, features).
    """
    features, targets = torch.from_numpy(data.features), torch.from_numpy(data.targets)
    curvature = torch.linalg.matrix_norm(features.T @ features / len(features), 2).item()
    models = [torch.zeros(features.shape[1], dtype=torch.float64) for _ in penalties]
    groups: list[dict[str, Any]] = [
        {"params": [weights.requires_grad_()], "l1": float(penalty)}
        for weights, penalty in zip(models, penalties, strict=True)
    ]
    optimizer = fusedopt.SGD(groups, lr=1 / curvature)
    for _ in range(steps):
        optimizer.zero_grad()
        errors = features @ torch.stack(models).T - targets[:, None]
        (errors.square().mean(0).sum() / 2).backward()
        optimizer.step()
    return torch.stack(models).detach().numpy()


def print_table(data: Data, weights: NDArray[np.float64]) -> None:
    """Prints for some penalties which features are left."""
    table = Table("l1", "of the ten", "of the shuffled", "features with a weight", box=None)
    for penalty, row in list(zip(PENALTIES, weights, strict=True))[::8]:
        real, shuffled = np.split(row != 0, 2)
        names = ", ".join(name for name, is_left in zip(data.names, real, strict=False) if is_left)
        table.add_row(f"{penalty:.3g}", str(real.sum()), str(shuffled.sum()), names)
    Console().print(table)


def draw(data: Data, weights: NDArray[np.float64], theme: Theme) -> Figure:
    """The weights over the penalty: those of measurements in colour, of shuffled ones in grey."""
    from matplotlib.figure import Figure

    from fusedopt.plotting.style import COLOURS, MARKERS

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    count = len(data.names) // 2
    for column in range(count, 2 * count):
        axes.plot(PENALTIES, weights[:, column], color=theme.foreground, alpha=0.35, lw=1)
    for column in range(count):
        dashes = "-" if column < len(COLOURS) else "--"
        axes.plot(
            PENALTIES,
            weights[:, column],
            dashes,
            color=COLOURS[column % len(COLOURS)],
            marker=MARKERS[column % len(MARKERS)],
            markevery=5,
            ms=4,
            label=data.names[column],
        )
    axes.plot([], [], color=theme.foreground, alpha=0.35, lw=1, label="shuffled")
    axes.set_xlabel("l1")
    axes.set_ylabel("weight")
    figure.legend(loc="outside right center", fontsize=9, title="measurement")
    return figure


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of all models.")] = STEPS,
    plot: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Write sparse-weights-light.svg and -dark.svg here."),
    ] = None,
) -> None:
    """Select features: the path of a linear model's weights over the penalty l1."""
    data = load_data()
    weights = weights_of(data, PENALTIES, steps)
    print_table(data, weights)
    if plot is not None:
        from fusedopt.plotting.style import save_themed

        plot.mkdir(parents=True, exist_ok=True)
        for path in save_themed(lambda theme: draw(data, weights, theme), plot, "sparse-weights"):
            print(path)


if __name__ == "__main__":
    typer.run(main)
