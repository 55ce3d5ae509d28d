"""Compares the norm of gradients with the reference's, as integers: ``fusedopt verify``."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import torch

from fusedopt import _native, reference
from fusedopt.checking.verify import Result, count_mismatches, gradients, isa, threads, to_array

if TYPE_CHECKING:
    from collections.abc import Sequence

# Around rows of lanes and blocks; together enough for several threads.
SIZES = (0, 1, 63, 64, 65, 4099, 65535, 65536, 65537, 300_001)


def _tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    """Of any magnitude, but without infinities, NaN and what has no square in double."""
    generator = np.random.default_rng(4)
    drawn = [gradients(size, dtype, generator) for size in SIZES]
    return [torch.where(x.double().abs() < 1e150, x, torch.ones_like(x)) for x in drawn]


def verify_norms(
    dtype: torch.dtype, isas: Sequence[str], thread_counts: Sequence[int]
) -> list[Result]:
    """Measures gradients one by one, all together, and in other orders.

    Returns:
        One result for each instruction set, of which a mismatch is a norm.
    """
    tensors = _tensors(dtype)
    rng = random.Random(5)
    lists = [
        *([tensor] for tensor in tensors),
        *(rng.sample(tensors, len(tensors)) for _ in range(3)),
    ]
    results = []
    for name in isas:
        result = Result("norm of gradients", str(dtype).removeprefix("torch."), name)
        for chosen in lists:
            expected = reference.total_norm(to_array(tensor) for tensor in chosen)
            for count in thread_counts:
                with isa(name), threads(count):
                    sums = _native.sums_of_squares(chosen, [0] * len(chosen))
                    norm = _native.norm_of_squares(sums[0])
                mismatches = count_mismatches(np.array([norm]), np.array([expected]))
                where = f"{len(chosen)} tensors, {count} threads"
                result.add(sum(tensor.numel() for tensor in chosen), mismatches, where)
        results.append(result)
    return results
