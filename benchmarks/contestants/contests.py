"""Who is timed: an optimizer of this package, torch's implementations, others, and the floors."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from fusedopt.checking.rows import FIRST_OF_RULE, ROWS, Row

from .floors import Copy, Touch, ideal_bytes
from .others import OTHERS, Factory

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
    """One optimizer of this package, and torch's class that computes the same."""

    row: Row

    @cached_property
    def states(self) -> int:
        """Number of states of a parameter's size."""
        param = torch.zeros(2)
        param.grad = torch.zeros(2)
        optimizer = self.row.optimizer([param], **self.row.usual)
        optimizer.step()
        return sum(value.shape == param.shape for value in optimizer.state[param].values())

    @property
    def is_fused_by_torch(self) -> bool:
        """Whether torch's class has a fused implementation."""
        theirs, _ = self.row.torch_twin
        return "fused" in inspect.signature(theirs).parameters

    def torch_peers(self) -> dict[str, Factory]:
        """The implementations that torch's class has."""
        theirs = partial(self.row.torch_twin[0], **self.row.torch_twin[1])
        names = ("for-loop", "foreach", "fused") if self.is_fused_by_torch else TORCH[:2]
        peers: dict[str, Factory] = {}
        for name in names:
            flags: dict[str, Any] = {"foreach": name == "foreach"}
            if self.is_fused_by_torch:
                flags["fused"] = name == "fused"
            peers[name] = partial(theirs, **flags)
        peers[COMPILED] = partial(Compiled, theirs=theirs)
        return peers

    def peers(
        self, device: str = "cpu", names: Iterable[str] = DEFAULT_PEERS
    ) -> dict[str, Factory]:
        """Everyone who is timed on a device: those of the names that have this optimizer."""
        peers: dict[str, Factory] = {
            OURS: partial(self.row.optimizer, **self.row.usual),
            TOUCH: partial(Touch, states=self.states),
        }
        if device == "cuda":
            peers[COPY] = partial(Copy, states=self.states)
        others = {name: other.factory(self.row.name) for name, other in OTHERS.items()}
        available = {**self.torch_peers(), **others}
        chosen = {name: available.get(name) for name in names}
        return {**peers, **{name: factory for name, factory in chosen.items() if factory}}

    def ideal_bytes(self, elements: int, itemsize: int) -> int:
        """Bytes that a step has to move."""
        return ideal_bytes(elements, itemsize, self.states)


CONTESTS = {row.name: Contest(row) for row in ROWS}

# Whose steps are shown on all workloads, over sizes and over threads; and what models train with.
MAIN = "Adam"
TRAINED = "AdamW"

# Beside them, on a few workloads: what torch has too, one of each rule; and what it does not fuse.
OTHERS_OF_TORCH = tuple(
    row.name
    for row in ROWS
    if row.torch_optimizer and row is FIRST_OF_RULE[row.rule] and row.name != MAIN
)
UNFUSED = tuple(name for name in OTHERS_OF_TORCH if not CONTESTS[name].is_fused_by_torch)
