"""What is called between backward and the next forward, with torch and with this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

import fusedopt
from fusedopt import _native

from .contests import CONTESTS, TRAINED
from .floors import touch_memory_of
from .others import Factory

Step = Callable[[], object]

# Of an exponential moving average of the parameters, and the state that holds it.
DECAY = 0.999
AVERAGE = "ema"


@dataclass(frozen=True)
class Sequence:
    """What is done with gradients: clipping, a step, and what comes after it.

    Attributes:
        name: in tables.
        averages: an exponential moving average of the parameters is kept.
        zeroes: the gradients are set to zero, in memory.
        by_hand: this package clips by its function ahead of the step, and not in the step.
        options: of this package's optimizer.
    """

    name: str
    averages: bool = False
    zeroes: bool = False
    by_hand: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def in_torch(self) -> str:
        """What torch does for the same, in float32: sequences with one name share a contestant."""
        average, zero = ", EMA" * self.averages, ", zero_grad" * self.zeroes
        return f"clip, step{average}{zero}"


SEQUENCES = (
    Sequence("clip, step"),
    Sequence("clip_grad_norm_, step", by_hand=True),
    Sequence("clip, step, 16-bit states", options={"state_bits": 16}),
    Sequence("clip, step, EMA", averages=True),
    Sequence("clip, step, zero_grad", zeroes=True),
    Sequence("clip, step, EMA, zero_grad", averages=True, zeroes=True),
)


@dataclass(frozen=True)
class Contestant:
    """Who carries out a sequence.

    Attributes:
        sequence: what it does.
        make: makes an optimizer of parameter groups.
        calls: what is called in turn, of an optimizer that has its states and the norm that is left
            of the gradients.
    """

    sequence: Sequence
    make: Factory
    calls: Callable[[Any, float], list[Step]]

    def start(self, groups: list[dict[str, Any]]) -> Any:
        """An optimizer that has its states: it has taken a step, of which averages are copies."""
        optimizer = self.make([dict(group) for group in groups])
        optimizer.step()
        if self.sequence.averages:
            for param in params_of(optimizer):
                optimizer.state[param].setdefault(AVERAGE, param.detach().clone())
        return optimizer

    def run_of(self, optimizer: Any, max_norm: float) -> Step:
        """The whole sequence as one call."""
        return _one_after_the_other(self.calls(optimizer, max_norm))


def _one_after_the_other(calls: list[Step]) -> Step:
    def run() -> None:
        for call in calls:
            call()

    return run


def ours(sequence: Sequence) -> Contestant:
    """This package."""
    averages = {"ema_decay": DECAY} if sequence.averages else {}
    make = partial(CONTESTS[TRAINED].row.optimizer, **averages, **sequence.options)
    return Contestant(sequence, make, partial(_calls_of_ours, sequence))


def _calls_of_ours(sequence: Sequence, optimizer: Any, max_norm: float) -> list[Step]:
    calls: list[Step] = [optimizer.step]
    if sequence.by_hand:
        calls.insert(0, partial(fusedopt.clip_grad_norm_, params_of(optimizer), max_norm))
    else:
        optimizer.max_grad_norm = max_norm
    return [*calls, *_zeroing(sequence, optimizer)]


def torchs(sequence: Sequence, implementation: str) -> Contestant:
    """Torch, with one of its implementations of the step."""
    make = CONTESTS[TRAINED].torch_peers()[implementation]
    return Contestant(sequence, make, partial(_calls_of_torch, sequence))


def _calls_of_torch(sequence: Sequence, optimizer: Any, max_norm: float) -> list[Step]:
    params = params_of(optimizer)
    calls: list[Step] = [
        partial(torch.nn.utils.clip_grad_norm_, params, max_norm, foreach=True),
        optimizer.step,
    ]
    if sequence.averages:
        averages = [optimizer.state[param][AVERAGE] for param in params]
        calls.append(partial(get_ema_multi_avg_fn(DECAY), averages, params, None))
    return [*calls, *_zeroing(sequence, optimizer)]


def _zeroing(sequence: Sequence, optimizer: Any) -> list[Step]:
    return [partial(optimizer.zero_grad, set_to_none=False)] if sequence.zeroes else []


def floor(sequence: Sequence, optimizer: Any) -> Step:
    """Moves the bytes of a sequence, in two passes: the norm's, and the step's."""
    grads = gradients_of(optimizer)
    spare: dict[tuple[int, int], torch.Tensor] = {}
    calls = [partial(read, grads), touch_memory_of(optimizer, spare).step]
    if sequence.zeroes:
        calls.append(partial(torch._foreach_zero_, grads))
    return _one_after_the_other(calls)


def read(tensors: list[torch.Tensor]) -> None:
    """Reads memory, a byte of every cache line, on as many threads as the norm."""
    _native.touch_lines(tensors)


def params_of(optimizer: Any) -> list[torch.Tensor]:
    """The parameters of all groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def gradients_of(optimizer: Any) -> list[torch.Tensor]:
    """The gradients of all parameters."""
    return [param.grad for param in params_of(optimizer) if param.grad is not None]
