"""The norm of gradients: a sum of squares that does not depend on how it is cut up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fusedopt.reference.shared import Array

BLOCK = 65536
LANES = 64


def _in_memory_order(array: Array) -> Array:
    """The elements of an array, the dimension with the largest stride outermost."""
    outermost_first = sorted(range(array.ndim), key=lambda d: -array.strides[d])
    return array.transpose(outermost_first).reshape(-1)


def block_sums(array: Array) -> Iterator[float]:
    """The sums of squares of blocks of 65,536 elements, in double.

    A block is summed in 64 lanes, row by row; then half of the lanes is added to the other half,
    until one is left. What is missing in the last row is zero. The squares of float32 and of
    narrower numbers are exact. Those of float64 are rounded, and infinite from 1.34e154 on.
    """
    elements = _in_memory_order(array)
    for begin in range(0, elements.size, BLOCK):
        block = elements[begin : begin + BLOCK].astype(np.float64)
        with np.errstate(all="ignore"):
            rows = np.pad(block * block, (0, -block.size % LANES)).reshape(-1, LANES)
            lanes = np.zeros(LANES)
            for row in rows:
                lanes = lanes + row
            while lanes.size > 1:
                lower, upper = np.split(lanes, 2)
                lanes = lower + upper
        yield float(lanes[0])


def total_norm(arrays: Iterable[Array]) -> float:
    """The 2-norm of all arrays together.

    The sums of the blocks are added exactly and rounded once, so neither the order of arrays
    matters nor who has added which of them. Where a sum is too large for a double it is infinite.
    """
    sums = [block for array in arrays for block in block_sums(array)]
    try:
        return math.sqrt(math.fsum(sums))
    except OverflowError:
        return math.inf


def clip_factor(max_norm: float, norm: float) -> float:
    """What gradients are multiplied by, so that their norm becomes at most ``max_norm``.

    As ``torch.nn.utils.clip_grad_norm_`` has it, but an infinite ``max_norm`` clips nothing
    whatever the norm is. A norm that is NaN makes every gradient NaN.
    """
    if max_norm == math.inf:
        return 1.0
    factor = max_norm / (norm + 1e-6)
    return 1.0 if factor > 1.0 else factor


def clip(grad: Array, factor: float) -> Array:
    """A gradient as the rule gets it: after :func:`unscale`, ahead of everything else."""
    with np.errstate(all="ignore"):
        return grad * grad.dtype.type(factor)
