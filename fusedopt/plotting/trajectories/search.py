"""Runs of the optimizers over a surface, and the search for each one's learning rate."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusedopt.checking.rows import FIRST_OF_RULE, ROWS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from fusedopt.optimizers.base import FusedOptimizer
    from fusedopt.plotting.trajectories.surfaces import Surface

# Every option but the learning rate, and those that are asked for, is at its default.
OPTIMIZERS = {row.name: row.optimizer for row in ROWS}

# Whose learning rate an optimizer takes: that of the first with the same rule, so that nothing but
# the other defaults makes another path.
_FIRST = {row.name: FIRST_OF_RULE[row.rule].name for row in ROWS}
RATE_FROM = {name: first for name, first in _FIRST.items() if first != name}

# Ten a decade, rounded as in ISO 3 (Renard's R10), from 0.0001 to 800.
RATES = tuple(
    float(f"{mantissa}e{exponent}")
    for exponent in range(-4, 3)
    for mantissa in (1, 1.25, 1.6, 2, 2.5, 3.15, 4, 5, 6.3, 8)
)

# What is added to a loss ahead of its logarithm: below it a path counts as arrived.
FLOOR = 1e-8

# A step longer than this share of the picture's diagonal finds a minimum by luck.
LONGEST_STRIDE = 0.25

# Scores that differ by less are equal: an eighth more loss, on average over the steps.
TIE = 0.05

CRITERION = (
    "lowest mean, over all steps, of log10(highest loss from that step on - lowest loss of the "
    f"surface + {FLOOR:g}), among paths that stay in the picture and have no step longer than "
    f"{LONGEST_STRIDE:.0%} of its diagonal; of rates within {TIE:g} of the best, the smallest; "
    + ", ".join(f"{name} takes {first}'s" for name, first in RATE_FROM.items())
)


@dataclass(frozen=True)
class Path:
    """An optimizer's iterates on a surface.

    ``points``: float64 of shape (steps + 1, 2), from the start on; ``losses``: of shape
    (steps + 1,), above the surface's lowest; ``score``: what the search compared.
    """

    rate: float
    points: NDArray[np.float64]
    losses: NDArray[np.float64]
    score: float


def walk(
    optimizer_class: type[FusedOptimizer],
    surface: Surface,
    rates: Sequence[float],
    steps: int,
    **options: Any,
) -> NDArray[np.float64]:
    """The iterates of one optimizer from the surface's start, with several learning rates at once.

    Each rate is a parameter group with a point of its own; a step takes them all along. Where a
    norm is clipped, each is an optimizer of its own.

    Args:
        optimizer_class: of this package.
        surface: where to walk.
        rates: learning rates.
        steps: of every path.
        options: of the optimizer; with ``ema_decay`` the iterates are the averages.

    Returns:
        float64 of shape (rates, steps + 1, 2). A path that diverges has infinities and NaN.
    """
    points = [torch.tensor(surface.start, dtype=torch.float64) for _ in rates]
    groups = [
        {"params": [point.requires_grad_()], "lr": rate}
        for point, rate in zip(points, rates, strict=True)
    ]
    together = [groups] if options.get("max_grad_norm") is None else [[group] for group in groups]
    optimizers = [optimizer_class(each, **options) for each in together]
    # The parameters may be at a lookahead point, where the gradient is taken.
    place = "at_iterate" if options.get("ema_decay") is None else "averaged"
    iterates = [torch.stack(points).detach()]
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        x, y = torch.stack(points).unbind(dim=1)
        torch.autograd.backward(surface.loss(x, y).sum())
        with ExitStack() as stack:
            for optimizer in optimizers:
                optimizer.step()
                stack.enter_context(getattr(optimizer, place, nullcontext)())
            iterates.append(torch.stack(points).detach())
    return torch.stack(iterates, dim=1).numpy()


def search(
    optimizer: str,
    surface: Surface,
    steps: int,
    rates: Sequence[float] = RATES,
    **options: Any,
) -> Path:
    """The path with the learning rate that is best by :data:`CRITERION`; if none is, the smallest.

    Args:
        optimizer: a name of :data:`OPTIMIZERS`.
        surface: where to walk.
        steps: at least 1.
        rates: to choose from, ascending.
        options: of the optimizer, see :func:`walk`.
    """
    if optimizer in RATE_FROM:
        rates = [search(RATE_FROM[optimizer], surface, steps, rates, **options).rate]
    points = walk(OPTIMIZERS[optimizer], surface, rates, steps, **options)
    with np.errstate(all="ignore"):
        losses = surface.loss(points[..., 0], points[..., 1]) - surface.lowest
        # From each step on, the largest loss to come: a path that comes and goes has not arrived.
        to_come = np.maximum.accumulate(losses[:, ::-1], axis=1)
        scores = np.mean(np.log10(np.maximum(to_come, 0.0) + FLOOR), axis=1)
    ranked = np.where(_is_tame(points, surface), scores, np.inf)
    best = int(np.argmax(ranked <= ranked.min() + TIE))
    return Path(rates[best], points[best], losses[best], float(scores[best]))


def _is_tame(points: NDArray[np.float64], surface: Surface) -> NDArray[np.bool_]:
    """Which paths stay in the picture, without a step longer than a quarter of its diagonal."""
    low, high = np.transpose(surface.limits)
    with np.errstate(all="ignore"):
        inside = np.all((low <= points) & (points <= high), axis=(1, 2))
        strides = np.linalg.norm(np.diff(points, axis=1), axis=2)
    tame: NDArray[np.bool_] = inside & np.all(
        strides <= LONGEST_STRIDE * np.linalg.norm(high - low), axis=1
    )
    return tame
