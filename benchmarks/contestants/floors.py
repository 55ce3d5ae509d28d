"""The floors: steps that move the memory and compute next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
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


# Of the memory that a floor takes at once: a piece of the gradient stays in a cache meanwhile.
_PIECE = 1 << 18

Pieces = list[torch.Tensor]


def touch_memory_of(optimizer: Any, spare: dict[tuple[int, int], torch.Tensor]) -> Touch:
    """A floor that moves the bytes of an optimizer whose states may have any format.

    The memory of parameter, gradient and states is cut into pieces of as many float32. A step reads
    each piece of the gradient, and with it reads and writes pieces of the rest, at most four at
    once: where there are more, the gradient is read again from a cache.

    Args:
        optimizer: one that has taken a step, with contiguous parameters.
        spare: memory in the place of integers, some of which are no numbers as float32; floors
            of the same parameters share it.
    """
    kinds: dict[int, list[tuple[torch.Tensor, Pieces]]] = {}
    index = 0
    for group in optimizer.param_groups:
        for param in group["params"]:
            states = [state for state in optimizer.state[param].values() if _has_size(state)]
            integers = [state.nbytes // 4 for state in states if not state.is_floating_point()]
            numbers = [_words(state) for state in states if state.is_floating_point()]
            words = [_spare(spare, (index, at), count) for at, count in enumerate(integers)]
            for grad, pieces in _pieces(_words(param.grad), [_words(param), *numbers, *words]):
                kinds.setdefault(len(pieces) - 1, []).append((grad, pieces))
            index += 1
    return _touch(kinds)


def _touch(kinds: dict[int, list[tuple[torch.Tensor, Pieces]]]) -> Touch:
    groups = []
    states = {}
    for count, of_kind in kinds.items():
        for grad, (param, *others) in of_kind:
            param.grad = grad
            states[param] = dict(zip(("first", "second", "third"), others, strict=False))
        groups.append({"params": [pieces[0] for _, pieces in of_kind], "states": count})
    touch = Touch(groups)
    touch.state.update(states)
    return touch


def _pieces(grad: torch.Tensor, memory: Pieces) -> Iterator[tuple[torch.Tensor, Pieces]]:
    """Pieces of the gradient, each with as many pieces of the rest, of the same length."""
    # Of what has a size of its own only scales are smaller than an eighth of the gradient.
    length = min(_PIECE, *(w.numel() for w in (grad, *memory) if 8 * w.numel() > grad.numel()))
    cut: dict[int, Pieces] = {}
    for words in memory:
        for piece in words.split(length):
            cut.setdefault(piece.numel(), []).append(piece)
    grads = [piece for piece in grad.split(length) if piece.numel() == length]
    for size, pieces in cut.items():
        sources = grads if size == length else [grad[:size]]
        for at, source in enumerate(sources):
            of_source = pieces[at :: len(sources)]
            passes = -(-len(of_source) // 4)
            for start in range(passes):
                yield source, of_source[start::passes]


def _spare(
    spare: dict[tuple[int, int], torch.Tensor], key: tuple[int, int], count: int
) -> torch.Tensor:
    if key not in spare or spare[key].numel() < count:
        spare[key] = torch.zeros(count)
    return spare[key][:count]


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return as_words(tensor).detach().view(-1)


def _has_size(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


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
