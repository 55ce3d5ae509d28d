"""What the tests of averages share: a model, and an optimizer that has stepped it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
PLACE = "parameter group 0"

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


class Parameters(torch.nn.Module):
    """A model that is nothing but parameters."""

    def __init__(self, dtype=F32, sizes=(7, 1000)):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.each = torch.nn.ParameterList(
            torch.randn(size, generator=generator).to(dtype) for size in sizes
        )

    def take_gradients(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for param in self.each:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def stepped(dtype=F32, steps=3, optimizer_class=fusedopt.AdamW, **options):
    model = Parameters(dtype)
    optimizer = optimizer_class(model.parameters(), **{"lr": 0.1, **options})
    for step in range(steps):
        model.take_gradients(step)
        optimizer.step()
    return model, optimizer


def averages_of(model, optimizer):
    return [optimizer.state[param]["ema"] for param in model.parameters()]


def all_bits(tensors):
    return [bits(tensor).copy() for tensor in tensors]


def assert_bits(tensors, expected):
    for tensor, value in zip(tensors, expected, strict=True):
        assert np.array_equal(bits(tensor), value)
