"""Float32 masters of bfloat16 parameters: read as numbers, and written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native
from fusedopt.forks import torch_on_one_thread_if_forked
from fusedopt.optimizers import shards
from fusedopt.optimizers.storage import REMAINDER, in_memory_order

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusedopt.optimizers.base import FusedOptimizer


def master_of(param: torch.Tensor, states: Mapping[str, Any]) -> torch.Tensor:
    """A copy of a parameter in float32, or in float64 if it is; whole, if it has a remainder."""
    if REMAINDER not in states:
        wide = torch.float64 if param.dtype == torch.float64 else torch.float32
        return param.detach().to(wide, copy=True)
    part = shards.local(param)
    upper = torch.empty_like(part, device="cpu").copy_(part)
    remainder = torch.empty_like(upper, dtype=torch.int16).copy_(shards.local(states[REMAINDER]))
    numbers = torch.empty_like(upper, dtype=torch.float32)
    _native.decode(
        "master", in_memory_order(upper), in_memory_order(remainder), in_memory_order(numbers)
    )
    return shards.like(param, numbers.to(part.device))


def split_master(param: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 numbers as a bfloat16 parameter's value, and the remainder beside it."""
    part = shards.local(param)
    numbers = torch.empty_like(part, dtype=torch.float32, device="cpu").copy_(shards.local(value))
    upper = torch.empty_like(numbers, dtype=torch.bfloat16)
    remainder = torch.empty_like(numbers, dtype=torch.int16)
    _native.encode(
        "master", in_memory_order(upper), in_memory_order(remainder), in_memory_order(numbers)
    )
    placed = torch.empty_like(param, dtype=torch.int16)
    shards.local(placed).copy_(remainder)
    return shards.like(param, upper.to(part.device)), placed


def masters_of(optimizer: FusedOptimizer) -> list[torch.Tensor]:
    """Copies of all parameters in float32 or wider, in the order of ``state_dict()``."""
    with torch_on_one_thread_if_forked():
        return [
            master_of(param, optimizer.state.get(param, {}) if group.get("master_weights") else {})
            for group in optimizer.param_groups
            for param in group["params"]
        ]


def write_masters(optimizer: FusedOptimizer, values: list[torch.Tensor]) -> None:
    """Writes numbers into all parameters, and into the remainders of those that have masters.

    Raises:
        ValueError: a value does not fit its parameter; nothing is changed then.
    """
    params = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    if len(values) != len(params):
        raise ValueError(f"there are {len(params)} parameters, not {len(values)}")
    placed = []
    for index, ((param, _), value) in enumerate(zip(params, values, strict=True)):
        if value.shape != param.shape:
            shapes = f"{tuple(value.shape)}, its parameter {tuple(param.shape)}"
            raise ValueError(f"value {index} has shape {shapes}")
        if not value.is_floating_point():
            raise ValueError(f"value {index} has dtype {value.dtype}")
        if not shards.fits(value, param):
            raise ValueError(
                f"value {index} is a DTensor on another device mesh than its parameter"
            )
        placed.append(shards.as_placed(value, param))
    with torch_on_one_thread_if_forked(), torch.inference_mode(False), torch.no_grad():
        split = [
            split_master(param, value)
            if group.get("master_weights")
            else (value.to(param.device), None)
            for (param, group), value in zip(params, placed, strict=True)
        ]
        for (param, group), (upper, remainder) in zip(params, split, strict=True):
            param.copy_(upper)
            if remainder is None:
                optimizer.state.get(param, {}).pop(REMAINDER, None)
                continue
            states = optimizer.state[param]
            if not states and _native.counts_steps(optimizer._rule):  # which torch looks for
                states["step"] = optimizer._create_state("step", param, group)
            states[REMAINDER] = remainder
