"""What ``load_state_dict`` does beyond torch's."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch

from fusedopt.optimizers import epilogue, storage
from fusedopt.optimizers.storage import convert, is_usual

if TYPE_CHECKING:
    from collections.abc import Callable

_OPTIONS = storage.DEFAULTS | epilogue.DEFAULTS


class _Kept:
    """A state on its way through torch's ``load_state_dict``, which casts what is a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Loading:
    """What a checkpoint that is being loaded has for groups that store otherwise than torch does.

    torch replaces a group by that of the checkpoint, and casts states to the parameter's dtype. Of
    the options of storage those that the checkpoint does not name stay what they are, and states
    keep their dtype, unless the options ask for another.

    Args:
        groups: the parameter groups, before anything is loaded.
        translate: makes a checkpoint of another package one of this, and says whether a state of it
            had to be converted; any other it returns itself.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        translate: Callable[[dict[str, Any]], tuple[dict[str, Any], bool]],
    ) -> None:
        self.translate = translate
        self.is_converted = False
        self.options = [{n: group[n] for n in _OPTIONS if n in group} for group in groups]

    def wrap(self, _optimizer: torch.optim.Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
        """A hook for what is loaded, after all others."""
        state_dict, self.is_converted = self.translate(loaded)
        groups = state_dict["param_groups"]
        kept = {
            key
            for options, group in zip(self.options, groups, strict=False)
            if state_dict is not loaded or storage.asked_for_in({**options, **group})
            for key in group["params"]
        }
        wrapped = {
            key: {
                name: _Kept(value) if isinstance(value, torch.Tensor) and name != "step" else value
                for name, value in states.items()
            }
            if key in kept or epilogue.AVERAGE in states
            else states
            for key, states in state_dict["state"].items()
        }
        return {**state_dict, "state": wrapped}

    def keep_options(self, groups: list[dict[str, Any]]) -> None:
        """Puts the options that the checkpoint does not name into the groups that it has."""
        for options, group in zip(self.options, groups, strict=True):
            for name, value in options.items():
                group.setdefault(name, value)

    def unwrap(self, state: dict[str, Any], signs: dict[str, bool]) -> None:
        """Puts plain tensors into what torch is about to set.

        Warns once if a state is not stored as its group's options ask, and converts it.
        """
        is_converted = self.is_converted
        for group in state["param_groups"]:
            for param in group["params"]:
                states = state["state"].get(param, {})
                kept = {name: value for name, value in states.items() if isinstance(value, _Kept)}
                if not kept:
                    continue
                for name, value in kept.items():
                    is_count = name == epilogue.AVERAGED
                    states[name] = value.tensor if is_count else value.tensor.to(param.device)
                states.update(epilogue.converted(states, param, group))
                otherwise = param.dtype if is_usual(group) else None
                is_converted |= convert(states, param, group, signs, otherwise)
        if is_converted:
            warnings.warn(
                "the checkpoint's states are stored otherwise than the options of the parameter "
                "groups ask; they have been converted",
                stacklevel=2,
            )
