"""Clipped steps with the kernels as compiled, beside those of the CPU."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from compiled_cuda import compiled_cuda
from compiled_scenarios import HOWS, options_for
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import Row
from helpers import bits, content, parameter, scaled_step

# Parameters and gradients, by the kernel that steps them, and how many more there are.
MIXES: dict[str, tuple[list[tuple[torch.dtype, torch.dtype]], int]] = {
    "small": ([(dtype, dtype) for dtype in DTYPES], 0),
    "large": ([(dtype, dtype) for dtype in DTYPES], 150),
    "any": ([(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], 1100),
    "double": ([(torch.float64, torch.float32), (torch.float32, torch.float32)], 0),
}
# The scale of a gradient scaler, and what one element of a gradient is instead.
STEPS: tuple[tuple[float | None, float | None], ...] = (
    (None, None),
    (1000.0, None),
    (None, math.nan),
    (3.0, None),
)


def views(dtype: torch.dtype, is_first: bool) -> list[torch.Tensor]:
    """More than one block, rows and what is left of them, strides, one number, none."""
    generator = np.random.default_rng(3)

    def draw(*shape):
        return torch.from_numpy(generator.standard_normal(shape)).to(dtype)

    large = [draw(66_000)] if is_first else []
    return [*large, draw(1100), draw(67, 40).T, draw(20, 30)[:, ::2], draw(3)[1], draw(0)]


class Side:
    """An optimizer on parameters of a mix of dtypes."""

    def __init__(self, row: Row, kind: str, options: dict[str, Any]):
        dtypes, more = MIXES[kind]
        self.params, self.grads = [], []
        for n, (of_param, of_grad) in enumerate(dtypes):
            few = [torch.ones(2)] * (more // len(dtypes))
            for view in (*views(of_param, n == 0), *few):
                self.params.append(parameter(view.to(of_param, copy=True)))
                self.params[-1].grad_dtype = None
            self.grads += [view.to(of_grad) for view in (*views(of_grad, n == 0), *few)]
        self.optimizer = row.optimizer(self.params, **options)

    def step(self, number: int) -> None:
        scale, special = STEPS[number]
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad * (number + 1)
        if special is not None:
            self.params[1].grad[-1] = special
        if scale is None:
            self.optimizer.step()
        else:
            for param in self.params:
                param.grad = param.grad.clone()  # whose elements share no memory
            scaled_step(self.optimizer, scale)


def check_clipped(architecture: str, row: Row, kind: str, number: int) -> None:
    """Steps that are clipped and one that is skipped; `number` varies options and who derives."""
    options = row.options[number % len(row.options)]
    capturable = number % 2 == 1
    of_all = {**options_for(row, options, HOWS[0]), "max_grad_norm": 2.0, "skip_nonfinite": True}
    ours = Side(row, kind, {**of_all, "capturable": capturable})
    theirs = Side(row, kind, of_all)
    for step in range(len(STEPS)):
        with compiled_cuda(architecture, seed=number + step):
            ours.step(step)
        theirs.step(step)
        assert content(ours.optimizer.grad_norm) == content(theirs.optimizer.grad_norm)
        assert bool(ours.optimizer.skipped) == bool(theirs.optimizer.skipped) == (step == 2)
        for param, other in zip(ours.params, theirs.params, strict=True):
            assert np.array_equal(bits(param), bits(other))
            for name, state in theirs.optimizer.state[other].items():
                assert torch.equal(ours.optimizer.state[param][name], state), name
