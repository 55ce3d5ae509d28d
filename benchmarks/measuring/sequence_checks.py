"""Who may be timed on sequences: a contestant whose results are those of this package."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from ..contestants.contests import OURS
from ..contestants.sequences import (
    AVERAGE,
    DECAY,
    SEQUENCES,
    Contestant,
    gradients_of,
    ours,
    params_of,
)
from .checks import TOLERANCE, UnfitError, difference

Who = tuple[str, str]  # a sequence, and who carries it out
Norm = Callable[[list[torch.Tensor]], torch.Tensor]

_SHAPES = ((7,), (64, 64), (3, 1000))

# Of the gradients of each step, which have a norm of 84 before that. The rule makes the same step
# of gradients and of a multiple of them, so clipping shows only where it changes them unequally.
_SCALES = (1.0, 5.0, 0.1)
_MAX_NORM = 50.0


def check_sequences(contestants: dict[Who, Contestant]) -> dict[Who, str]:
    """Why a contestant must not be compared, for every one of which that is so.

    Parameters must be those that this package has after clipping in the step, within rounding;
    averages must be those of the parameters, and gradients zero if they are to be zeroed.

    Raises:
        UnfitError: a contestant of this package of which that is so.
    """
    expected = _trajectory(ours(SEQUENCES[0]))
    reasons = {}
    for who, contestant in contestants.items():
        is_rounded = "state_bits" in contestant.sequence.options
        tolerance = TOLERANCE[torch.bfloat16 if is_rounded else torch.float32]
        reason = difference(partial(_trajectory, contestant), expected, tolerance)
        if reason is not None:
            if who[1] == OURS:
                raise UnfitError(f"{who[0]}: {reason}")
            reasons[who] = reason
    return reasons


def _trajectory(contestant: Contestant) -> list[torch.Tensor]:
    """Parameters after a step and some sequences from zero, and their averages.

    Averages are the contestant's if it keeps them, and are computed here if it does not.

    Raises:
        UnfitError: gradients are not zero that are to be zeroed.
    """
    params = [torch.zeros(shape) for shape in _SHAPES]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = contestant.start([{"params": params, "lr": 0.1}])
    run = contestant.run_of(optimizer, _MAX_NORM)
    averages = [param.clone() for param in params]
    generator = torch.Generator().manual_seed(0)
    for scale in _SCALES:
        for grad in gradients_of(optimizer):
            grad.copy_(scale * torch.randn(grad.shape, generator=generator))
        run()
        if contestant.sequence.zeroes and any(grad.any() for grad in gradients_of(optimizer)):
            raise UnfitError("leaves gradients")
        for average, param in zip(averages, params, strict=True):
            average.lerp_(param, 1 - DECAY)
    if contestant.sequence.averages:
        averages = [optimizer.state[param][AVERAGE] for param in params_of(optimizer)]
    return [*params, *averages]


def check_norms(norms: dict[str, Norm], dtype: torch.dtype) -> dict[str, str]:
    """Why a norm must not be compared, for every one that is not this package's in rounding."""
    torch.manual_seed(0)
    tensors = [torch.randn(shape).to(dtype) for shape in _SHAPES]
    expected = [norms[OURS](tensors)]
    reasons = {
        who: difference(lambda norm=norm: [norm(tensors)], expected, TOLERANCE[dtype])
        for who, norm in norms.items()
    }
    return {who: reason for who, reason in reasons.items() if reason is not None}
