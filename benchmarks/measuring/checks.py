"""Who may be timed: a peer that computes the same, and does not raise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fusedopt.checking.verify import take_any_gradient

from ..contestants.contests import COPY, OURS, TOUCH
from ..contestants.others import Factory
from ..contestants.ways import OVERWRITING, PLAIN, WAYS, is_low_bit

# Largest difference, as a fraction of the largest parameter. With 16 bits torch's for-loop and
# foreach round after every operation, and an eps may be below float16's normal numbers.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 0.06,
    torch.float16: 0.06,
}


class UnfitError(Exception):
    """A peer that must not be compared, and why."""


def check(peers: dict[str, Factory], dtype: torch.dtype, device: str = "cpu") -> dict[str, str]:
    """Why a peer must not be compared, for every peer of which that is so.

    Each takes a few steps on tensors whose sizes are on both sides of a vector's; its parameters
    must be those of this package's optimizer, within rounding, and its gradients untouched, because
    all peers share them.
    """
    expected = _trajectory(peers[OURS], dtype, device)
    reasons = {
        name: difference(
            partial(_trajectory, factory, dtype, device),
            expected,
            None if is_low_bit(name) else TOLERANCE[dtype],
        )
        for name, factory in peers.items()
        if name not in (OURS, TOUCH, COPY)
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def check_stored(factories: dict[tuple[str, str], Factory]) -> dict[str, dict[str, str]]:
    """By way and peer, why it must not be compared, for every one of which that is so.

    The parameters must be those that this package has in float32, within the rounding of theirs;
    with states of 8 bits they have to be numbers.
    """
    expected = _trajectory(WAYS[PLAIN].optimizer, torch.float32, "cpu")
    reasons: dict[str, dict[str, str]] = {}
    for (name, who), factory in factories.items():
        way = WAYS[name]
        is_coded = is_low_bit(who) or way.options.get("state_bits") == 8
        tolerance = TOLERANCE[torch.float32 if name == PLAIN else torch.bfloat16]
        trajectory = partial(
            _trajectory, factory, way.param, "cpu", way.grad, may_overwrite=who in OVERWRITING
        )
        reason = difference(trajectory, expected, None if is_coded else tolerance)
        if reason is not None:
            if who == OURS:
                raise UnfitError(f"{name}: {reason}")
            reasons.setdefault(name, {})[who] = reason
    return reasons


@dataclass(frozen=True)
class Warm:
    """An optimizer that has taken some steps.

    Attributes:
        optimizer: anything that has ``step``.
        first_step: seconds of the first step, which creates the states; where the peer compiles, it
            compiles.
        state_bytes: of the states that it made for itself.
    """

    optimizer: Any
    first_step: float
    state_bytes: int = 0


def warm_up(name: str, factory: Factory, groups: list[dict[str, Any]], steps: int) -> Warm | str:
    """Makes a peer and lets it take some steps, or says why it cannot.

    What this package and the floors raise is raised: they are what all others are compared with.
    """
    try:
        optimizer = factory([dict(group) for group in groups])
        start = time.perf_counter()
        optimizer.step()
        first_step = time.perf_counter() - start
        for _ in range(steps - 1):
            optimizer.step()
    except Exception as error:  # other packages raise whatever they like
        if name in (OURS, TOUCH, COPY):
            raise
        return raises(error)
    return Warm(optimizer, first_step)


def warm_again(factory: Factory, groups: list[dict[str, Any]], steps: int) -> Any:
    """Another optimizer of a peer that has been made once."""
    optimizer = factory([dict(group) for group in groups])
    for _ in range(steps):
        optimizer.step()
    return optimizer


def raises(error: Exception) -> str:
    """What is said of a peer that raises: the first line of the message."""
    if isinstance(error, UnfitError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return f"is not installed ({error.name})"
    message = str(error).strip().partition("\n")[0]
    return f"raises {type(error).__name__}: {message}"


def difference(
    trajectory: Callable[[], list[torch.Tensor]],
    expected: list[torch.Tensor],
    tolerance: float | None,
) -> str | None:
    """Why what a trajectory gives is not what is expected; any numbers are without a tolerance."""
    largest = max(param.abs().max().item() for param in expected)
    try:
        params = trajectory()
    except Exception as error:  # other packages raise whatever they like
        return raises(error)
    far = (
        not param.isfinite().all()
        or (tolerance is not None and (param - right).abs().max().item() > tolerance * largest)
        for param, right in zip(params, expected, strict=True)
    )
    return "computes something else" if any(far) else None


def _trajectory(
    factory: Factory,
    dtype: torch.dtype,
    device: str,
    grad_dtype: torch.dtype | None = None,
    may_overwrite: bool = False,
) -> list[torch.Tensor]:
    """Parameters after three steps from zero, so that they are what the steps have added.

    Args:
        factory: of the optimizer.
        dtype, device: of the parameters.
        grad_dtype: of the gradients, which are new for each step; the parameters' by default.
        may_overwrite: whether a step may change them.

    Raises:
        UnfitError: a step has changed a gradient.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = ((7,), (64, 64), (3, 1000))
    params = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    for param in params if grad_dtype is not None else ():
        take_any_gradient(param)
    optimizer = factory([{"params": params, "lr": 0.1}])
    for _ in range(3):
        for param in params:
            gradient = torch.randn(param.shape, generator=generator)
            param.grad = gradient.to(device, grad_dtype or dtype)
        gradients = [param.grad for param in params if param.grad is not None]
        before = [gradient.clone() for gradient in gradients]
        optimizer.step()
        if not may_overwrite and not all(map(torch.equal, gradients, before)):
            raise UnfitError("overwrites the gradients")
    return params
