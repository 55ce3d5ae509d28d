"""The floors: steps that move the memory and compute next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt import FusedOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


class Touch(FusedOptimizer):
    """Adds a multiple of the gradient to the parameter and to each state: not an optimizer.

    It reads and writes the memory that a rule with as many states reads and writes, by the same
    native call, so no rule can be faster. Memory of 16-bit numbers is taken for half as many
    float32, whatever they are: bytes are moved, and nothing is converted.

    Args:
        params: contiguous parameters or dicts defining groups, whose own rates are not used. Of
            16-bit ones the gradients are those that they have now.
        states: number of states, from 0 to 3.
        factor: of the gradient; with 0 all values stay what they were.

    State: the first ``states`` of ``first``, ``second`` and ``third``, of the parameter's shape and
    dtype, or of half as many float32.
    """

    _rule = "touch"

    def __init__(self, params: ParamsT, states: int = 0, factor: float = 0.0) -> None:
        if states not in range(4):
            raise ValueError(f"Invalid number of states: {states}")
        defaults = {"lr": factor, "weight_decay": 0.0, "maximize": False, "states": states}
        super().__init__(params, defaults)
        for group in self.param_groups:
            group["lr"] = factor
            group["params"] = [_words_of_parameter(param) for param in group["params"]]


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or its memory as float32 if it is in 16 bits; an odd element is left out."""
    if tensor.itemsize != 2:
        return tensor
    return tensor.detach().view(-1)[: tensor.numel() // 2 * 2].view(torch.float32)


def _words_of_parameter(param: torch.Tensor) -> torch.Tensor:
    words = as_words(param)
    if words is not param and param.grad is not None:
        words.grad = as_words(param.grad)
    return words


class Copy:
    """One copy within a device that moves as many bytes as a step has to: not an optimizer.

    Half of the bytes are read and half are written.

    Args:
        groups: parameter groups, of which only the sizes count.
        states: number of states of a parameter's size.
    """

    def __init__(self, groups: list[dict[str, Any]], states: int) -> None:
        params = [param for group in groups for param in group["params"]]
        moved = sum(ideal_bytes(param.numel(), param.itemsize, states) for param in params)
        self._source = torch.ones(moved // 2, dtype=torch.uint8, device=params[0].device)
        self._target = torch.empty_like(self._source)

    def step(self) -> None:
        """Copies."""
        self._target.copy_(self._source)


def ideal_bytes(elements: int, itemsize: int, states: int) -> int:
    """Bytes that a step has to move.

    Parameter, gradient and states are read; parameter and states are written.
    """
    return elements * itemsize * (2 + states + 1 + states)
