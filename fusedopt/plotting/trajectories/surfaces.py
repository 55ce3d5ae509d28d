"""The loss surfaces: functions of two parameters with known minima."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Point = tuple[float, float]
Values = TypeVar("Values", "torch.Tensor", "NDArray[np.float64]")


def _valley(x: Values, y: Values) -> Values:
    return 0.5 * (x * x + 40.0 * y * y)


def _ellipse(x: Values, y: Values) -> Values:
    # The axes u and v are those of x and y, turned by 45 degrees.
    u, v = x + y, x - y
    return 0.25 * (u * u + 40.0 * v * v)


def _saddle(x: Values, y: Values) -> Values:
    z = y * y
    return 5.0 * x * x + 0.25 * z * z - 0.5 * z


def _rosenbrock(x: Values, y: Values) -> Values:
    u, v = 1.0 - x, y - x * x
    return u * u + 100.0 * v * v


def _beale(x: Values, y: Values) -> Values:
    z = y * y
    u, v, w = 1.5 - x + x * y, 2.25 - x + x * z, 2.625 - x + x * z * y
    return u * u + v * v + w * w


@dataclass(frozen=True)
class Surface:
    """A loss over two parameters, where the optimizers start, and what a picture shows of it.

    ``loss`` takes arrays or tensors of one shape and uses ``+ - *`` alone, so that every machine
    computes the same bits, gradients included.
    """

    title: str
    formula: str
    loss: Callable[[Values, Values], Values]
    start: Point
    minima: tuple[Point, ...]
    lowest: float
    limits: tuple[Point, Point]
    saddles: tuple[Point, ...] = ()


# Beale, On an iterative method for finding a local minimum of a function of more than one variable,
# 1958; Rosenbrock, An automatic method for finding the greatest or least value of a function, 1960.
SURFACES = {
    "valley": Surface(
        "Ill-conditioned valley",
        r"$\frac{1}{2}\,(x^2 + 40\,y^2)$",
        _valley,
        start=(-4.0, 1.0),
        minima=((0.0, 0.0),),
        lowest=0.0,
        limits=((-4.6, 1.4), (-1.5, 1.5)),
    ),
    "ellipse": Surface(
        "The valley turned by 45°",
        r"$\frac{1}{4}\,((x+y)^2 + 40\,(x-y)^2)$",
        _ellipse,
        start=(-3.5, -2.1),
        minima=((0.0, 0.0),),
        lowest=0.0,
        limits=((-4.0, 1.2), (-3.2, 1.4)),
    ),
    "saddle": Surface(
        "Saddle",
        r"$5x^2 - \frac{1}{2}y^2 + \frac{1}{4}y^4$",
        _saddle,
        start=(-1.0, 0.001),
        minima=((0.0, -1.0), (0.0, 1.0)),
        lowest=-0.25,
        limits=((-1.2, 1.2), (-0.4, 1.5)),
        saddles=((0.0, 0.0),),
    ),
    "rosenbrock": Surface(
        "Rosenbrock",
        r"$(1-x)^2 + 100\,(y-x^2)^2$",
        _rosenbrock,
        start=(-1.2, 1.0),
        minima=((1.0, 1.0),),
        lowest=0.0,
        limits=((-1.8, 1.6), (-0.6, 1.8)),
    ),
    "beale": Surface(
        "Beale",
        r"$(1.5-x+xy)^2 + (2.25-x+xy^2)^2 + (2.625-x+xy^3)^2$",
        _beale,
        start=(1.0, 1.5),
        minima=((3.0, 0.5),),
        lowest=0.0,
        limits=((-0.5, 4.0), (-1.5, 2.0)),
    ),
}
