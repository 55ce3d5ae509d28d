"""One set of states for all: where memory lies decides how fast it is, sometimes by a factor."""

from __future__ import annotations

from typing import Any

import torch

from ..contestants.floors import as_words

States = dict[str, Any]
Kind = tuple[type, torch.dtype, torch.Size]


def share_states(owner: Any, other: Any) -> bool:
    """Lets an optimizer step another one's states, and says whether it does.

    States of a parameter's size are matched in their order, which is the same everywhere: momentum
    before second moment. An optimizer whose states are another number, or have another dtype, keeps
    its own. Step counts are everybody's own.

    Args:
        owner: an optimizer that has taken a step.
        other: one that has taken a step on the same parameters.
    """
    pairs = list(zip(_params(owner), _params(other), strict=False))
    if len(pairs) < len(_params(owner)):
        return False  # it does not say what it steps
    matched = []
    for mine, theirs in pairs:
        shared = [*_states(owner, mine).values()]
        own = _states(other, theirs)
        if theirs.dtype != mine.dtype:
            shared = [as_words(state) for state in shared]
        if [_kind(state) for state in shared] != [_kind(state) for state in own.values()]:
            return False
        matched.append((other.state[theirs], dict(zip(own, shared, strict=True))))
    for state, shared_states in matched:
        state.update(shared_states)
    return True


def _params(optimizer: Any) -> list[torch.Tensor]:
    groups = getattr(optimizer, "param_groups", [])
    return [param for group in groups for param in group["params"]]


def _states(optimizer: Any, param: torch.Tensor) -> States:
    """The states of the parameter's size."""
    state = optimizer.state.get(param, {})
    return {
        name: value
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and value.shape == param.shape
    }


def _kind(tensor: torch.Tensor) -> Kind:
    return type(tensor), tensor.dtype, tensor.shape


class SharedStates:
    """States of the same parameters in whatever formats there are, each format's in one memory.

    An optimizer takes the memory of those before it that have as many tensors of each kind that
    both have, in their order: codes with their scales, a second moment after a first.
    """

    def __init__(self) -> None:
        self._owned: dict[tuple[int, Kind], list[torch.Tensor]] = {}

    def share(self, optimizer: Any) -> None:
        """Gives an optimizer that has taken a step the memory of others, or lends its own."""
        for index, param in enumerate(_params(optimizer)):
            state = optimizer.state[param]
            kinds: dict[Kind, States] = {}
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim() > 0:
                    kinds.setdefault(_kind(value), {})[name] = value
            owned = {kind: self._owned.get((index, kind), [*own.values()])
                     for kind, own in kinds.items()}  # fmt: skip
            if all(len(owned[kind]) == len(own) for kind, own in kinds.items()):
                for kind, own in kinds.items():
                    self._owned[index, kind] = owned[kind]
                    state.update(zip(own, owned[kind], strict=True))
