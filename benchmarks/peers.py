"""Who is timed: an optimizer of this package, torch's implementations of it, and the floor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import fusedopt

from .touch import Copy, Touch, ideal_bytes

OURS = "fusedopt"
TOUCH = "touch"
COPY = "copy"
NOT_TORCH = (OURS, TOUCH, COPY)

Factory = Callable[[list[dict[str, Any]]], Any]


@dataclass(frozen=True)
class Contest:
    """One optimizer of this package and the class of torch that computes the same.

    Attributes:
        states: number of states of a parameter's size.
        options: arguments of this package's class.
        torch_options: arguments of torch's class.
    """

    ours: type[torch.optim.Optimizer]
    theirs: type[torch.optim.Optimizer]
    states: int
    options: dict[str, Any] = field(default_factory=dict)
    torch_options: dict[str, Any] = field(default_factory=dict)

    def torch_peers(self) -> dict[str, Factory]:
        """The implementations that torch's class has."""
        peers: dict[str, Factory] = {}
        has_fused = "fused" in inspect.signature(self.theirs).parameters
        for name in ("for-loop", "foreach", "fused") if has_fused else ("for-loop", "foreach"):
            flags: dict[str, Any] = {"foreach": name == "foreach"}
            if has_fused:
                flags["fused"] = name == "fused"
            peers[name] = partial(self.theirs, **self.torch_options, **flags)
        return peers

    def peers(self, device: str = "cpu") -> dict[str, Factory]:
        """Everyone who is timed on a device, by name."""
        ours: dict[str, Factory] = {
            OURS: partial(self.ours, **self.options),
            TOUCH: partial(Touch, states=self.states),
        }
        if device == "cuda":
            ours[COPY] = partial(Copy, states=self.states)
        return {**ours, **self.torch_peers()}

    def ideal_bytes(self, elements: int, itemsize: int) -> int:
        """Bytes that a step has to move."""
        return ideal_bytes(elements, itemsize, self.states)


_SGD = {"momentum": 0.9}
_NESTEROV = {"momentum": 0.9, "nesterov": True}

CONTESTS = {
    "SGD": Contest(fusedopt.SGD, torch.optim.SGD, 1, _SGD, _SGD),
    "Momentum": Contest(fusedopt.Momentum, torch.optim.SGD, 1, _SGD, _SGD),
    "Nesterov": Contest(fusedopt.Nesterov, torch.optim.SGD, 1, _SGD, _NESTEROV),
    "Adagrad": Contest(fusedopt.Adagrad, torch.optim.Adagrad, 1),
    "RMSprop": Contest(fusedopt.RMSprop, torch.optim.RMSprop, 1),
    "Adadelta": Contest(fusedopt.Adadelta, torch.optim.Adadelta, 2),
    "Adam": Contest(fusedopt.Adam, torch.optim.Adam, 2),
    "AdamW": Contest(fusedopt.AdamW, torch.optim.AdamW, 2),
}

# Largest difference, as a fraction of the largest parameter. With 16 bits torch's for-loop and
# foreach round after every operation, and Adadelta's eps is below float16's normal numbers.
_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.bfloat16: 0.06,
    torch.float16: 0.06,
}


def check(peers: dict[str, Factory], dtype: torch.dtype, device: str = "cpu") -> dict[str, str]:
    """Why a peer must not be compared, for every peer of torch's of which that is so.

    Each takes a few steps on tensors whose sizes are on both sides of a vector's; its parameters
    must be those of this package's optimizer, within rounding.
    """
    expected = _trajectory(peers[OURS], dtype, device)
    reasons = {
        name: _reason(factory, dtype, device, expected)
        for name, factory in peers.items()
        if name not in NOT_TORCH
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _reason(
    factory: Factory, dtype: torch.dtype, device: str, expected: list[torch.Tensor]
) -> str | None:
    tolerance = _TOLERANCE[dtype] * max(param.abs().max().item() for param in expected)
    try:
        params = _trajectory(factory, dtype, device)
        torch.testing.assert_close(params, expected, rtol=0, atol=tolerance)
    except AssertionError:
        return "computes something else"
    except (RuntimeError, TypeError, ValueError) as error:
        return f"raises {type(error).__name__}: {error}"
    return None


def _trajectory(factory: Factory, dtype: torch.dtype, device: str) -> list[torch.Tensor]:
    """Parameters after three steps from zero, so that they are what the steps have added."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((7,), (64, 64), (3, 1000))
    params = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    optimizer = factory([{"params": params, "lr": 0.1}])
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param)
        optimizer.step()
    return params
