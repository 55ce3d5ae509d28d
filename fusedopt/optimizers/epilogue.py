"""What follows a step: the options, and the states that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULTS: dict[str, Any] = {"l1": 0.0, "ema_decay": None}

# The average of a parameter, and how many it is of, where that matters.
AVERAGE = "ema"
AVERAGED = "ema_step"


def asked_for_in(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an epilogue that a group has away from their defaults."""
    return {
        name: group[name]
        for name, default in DEFAULTS.items()
        if name in group and not _is(group[name], default)
    }


def _is(value: Any, default: Any) -> bool:
    return value is default or (isinstance(value, (int, float)) and value == default)


def converted(
    states: Mapping[str, Any], param: torch.Tensor, group: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The average and its count in their own dtypes, which torch does not keep when it loads them.

    The count stays on its device, as a step count does, unless the group wants it on that of the
    parameter.

    Args:
        states: of one parameter.
        param: whose they are.
        group: of the parameter.

    Returns:
        Those of both that have another dtype or device.
    """
    on_device = group.get("capturable") or group.get("fused")
    own = {
        AVERAGE: (param.device, average_dtype(param)),
        AVERAGED: (param.device if on_device else None, torch.float64),
    }
    result = {}
    for name, (device, dtype) in own.items():
        state = states.get(name)
        if isinstance(state, torch.Tensor):
            in_own = state.to(device or state.device, dtype)
            if in_own is not state:
                result[name] = in_own
    return result


def check_epilogue(group: Mapping[str, Any], index: int) -> None:
    """Refuses options of a group that are out of bounds.

    Raises:
        ValueError, TypeError: it names the group, the option and its value.
    """
    if asked_for_in(group):
        _native.check_epilogue(group, index)


def average_dtype(param: torch.Tensor) -> torch.dtype:
    """Float32 or wider: in 16 bits an average would stand still beside what moves it."""
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def empty_average(param: torch.Tensor) -> torch.Tensor:
    """Memory for a parameter's average, of its shape and memory format, and placed as it is."""
    return torch.empty_like(param, dtype=average_dtype(param))


def new_count(device: torch.device) -> torch.Tensor:
    """How many parameters an average is of: none so far."""
    return torch.zeros((), dtype=torch.float64, device=device)
