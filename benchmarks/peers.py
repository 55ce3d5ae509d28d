"""Who is timed: an optimizer of this package, torch's implementations, others, and the floors."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import fusedopt

from .others import OTHERS, Factory
from .touch import Copy, Touch, ideal_bytes

OURS = "fusedopt"
TOUCH = "touch"
COPY = "copy"
COMPILED = "compile"

# Torch's implementations; the first three are timed unless others are asked for.
TORCH = ("for-loop", "foreach", "fused", COMPILED)
DEFAULT_PEERS = TORCH[:3]

# What "all" stands for. A peer that rounds its states to 8 bits has to be asked for by name.
ALL_PEERS = (*TORCH, *(name for name, other in OTHERS.items() if not other.low_bit))
PEERS = (*TORCH, *OTHERS)


class Compiled:
    """A step of torch's foreach implementation under ``torch.compile``.

    As torch's recipe "Compiling the optimizer with torch.compile" has it. The first step compiles.
    """

    def __init__(self, groups: list[dict[str, Any]], theirs: Factory) -> None:
        # Otherwise the limit of compilations of one function would be reached, and the function
        # then runs uncompiled.
        torch.compiler.reset()
        self._optimizer = theirs(groups, foreach=True)
        self.state = self._optimizer.state
        self.step = torch.compile(self._optimizer.step)


@dataclass(frozen=True)
class Contest:
    """One optimizer of this package and the class of torch that computes the same.

    Attributes:
        ours: this package's class.
        theirs: torch's class.
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
        peers[COMPILED] = partial(Compiled, theirs=partial(self.theirs, **self.torch_options))
        return peers

    def peers(
        self, device: str = "cpu", names: Iterable[str] = DEFAULT_PEERS
    ) -> dict[str, Factory]:
        """Everyone who is timed on a device: those of the names that have this optimizer."""
        peers: dict[str, Factory] = {
            OURS: partial(self.ours, **self.options),
            TOUCH: partial(Touch, states=self.states),
        }
        if device == "cuda":
            peers[COPY] = partial(Copy, states=self.states)
        optimizer = next(name for name, contest in CONTESTS.items() if contest is self)
        others = {name: other.factory(optimizer) for name, other in OTHERS.items()}
        available = {**self.torch_peers(), **others}
        chosen = {name: available.get(name) for name in names}
        return {**peers, **{name: factory for name, factory in chosen.items() if factory}}

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
