"""How parameters and states are stored: the options, and the tensors that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native
from fusedopt.optimizers import scales, shards

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULTS: dict[str, Any] = {
    "state_bits": None,
    "stochastic_rounding": False,
    "master_weights": False,
    "seed": 0,
}

# The fewest elements that a parameter stores in codes.
FEWEST_CODES = 4096

REMAINDER = "param_remainder"
_SCALE = "_scale"


def scale_name(state: str) -> str:
    """The key of a state's scales, beside that of its codes."""
    return state + _SCALE


def asked_for(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that are not what they are by default."""
    return {name: value for name, value in options.items() if value != DEFAULTS[name]}


def asked_for_in(group: Mapping[str, Any]) -> dict[str, Any]:
    """The options of storage that a group has away from their defaults."""
    return asked_for({name: group[name] for name in DEFAULTS if name in group})


def is_usual(group: Mapping[str, Any]) -> bool:
    """Whether parameters and states of a group are stored as torch stores them."""
    return not asked_for_in(group)


def check_storage(group: Mapping[str, Any], index: int) -> None:
    """Refuses options of a group that are out of bounds or do not fit its parameters.

    Raises:
        ValueError: it names the group, the parameter, the option and what to do instead.
        NotImplementedError: a DTensor whose shards cannot be stored so.
    """
    if is_usual(group):
        return
    dtypes = [str(param.dtype).removeprefix("torch.") for param in group["params"]]
    _native.check_storage(group, index, dtypes)
    for position, param in enumerate(group["params"]):
        _check_shards(param, group, f"parameter group {index}, parameter {position}")


def _check_shards(param: torch.Tensor, group: Mapping[str, Any], where: str) -> None:
    try:
        shards.part_of(param)
        if state_dtype(param, group) == torch.uint8:
            scales.shape_of(param)
    except NotImplementedError as error:
        asked = ", ".join(asked_for_in(group))
        raise NotImplementedError(f"{where}: {asked} cannot be asked for: {error}") from error


def state_dtype(param: torch.Tensor, group: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a parameter's states, by the group's ``state_bits``.

    With 8 of them ``uint8``, but float32 for a parameter of fewer than 4,096 elements; of a
    parameter that is sharded all of them count.
    """
    bits = group.get("state_bits")
    if bits is None:
        return param.dtype
    if bits == 8 and param.numel() >= FEWEST_CODES:
        return torch.uint8
    return torch.bfloat16 if bits == 16 else torch.float32


def filled_state(
    name: str, param: torch.Tensor, group: Mapping[str, Any], value: float
) -> dict[str, torch.Tensor]:
    """A state without a sign whose elements are all ``value``, and its scales if it has any."""
    state = empty_state(name, param, group)
    assert state is not None
    if state.dtype != torch.uint8:
        return {name: state.fill_(value)}
    # The last code is 1, the first is 0.
    beside = scales.empty(param)
    scales.in_blocks(beside, shards.local(param).numel()).fill_(value)
    return {name: state.fill_(255 if value > 0 else 0), scale_name(name): beside}


def empty_state(name: str, param: torch.Tensor, group: Mapping[str, Any]) -> torch.Tensor | None:
    """Memory for a state, for the scales of one, or for the remainder of the parameter's master.

    Returns:
        A tensor of the parameter's shape and memory format, a DTensor where the parameter is one;
        for scales one number for each block of 256 elements, or None for a state that has none.
    """
    dtype = torch.int16 if name == REMAINDER else state_dtype(param, group)
    is_coded = dtype == torch.uint8
    if name.endswith(_SCALE):
        return scales.empty(param) if is_coded else None
    # Blocks of shards are those of the whole in the order of the dimensions only.
    in_order = is_coded and shards.is_distributed(param)
    order = torch.contiguous_format if in_order else torch.preserve_format
    return torch.empty_like(param, dtype=dtype, memory_format=order)


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a tensor without gaps, in one dimension, as they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _format_of_codes(signed: bool) -> str:
    return "signed codes" if signed else "unsigned codes"


def decoded(codes: torch.Tensor, beside: torch.Tensor, signed: bool) -> torch.Tensor:
    """The float32 numbers of codes and their scales, of the codes' shape, device and placement."""
    part = shards.local(codes)
    on_cpu = torch.empty_like(part, device="cpu").copy_(part)
    numbers = torch.empty_like(on_cpu, dtype=torch.float32)
    _native.decode(
        _format_of_codes(signed),
        in_memory_order(on_cpu),
        scales.in_blocks(beside, part.numel()).cpu(),
        in_memory_order(numbers),
    )
    return shards.like(codes, numbers.to(part.device))


def numbers_of(name: str, states: Mapping[str, Any], signed: bool) -> torch.Tensor | None:
    """A state as a tensor of a floating dtype: itself, or what its codes stand for."""
    state: torch.Tensor | None = states.get(name)
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8:
        return state
    return decoded(state, states[scale_name(name)], signed)


def encoded(numbers: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of numbers of any floating dtype, on their device, placed as they are."""
    part = shards.local(numbers)
    in_order = shards.is_distributed(numbers)
    order = torch.contiguous_format if in_order else torch.preserve_format
    on_cpu = torch.empty_like(part, dtype=torch.float32, device="cpu", memory_format=order)
    codes = torch.empty_like(on_cpu, dtype=torch.uint8)
    found = torch.empty(scales.count(part.numel()), device="cpu")
    _native.encode(
        _format_of_codes(signed),
        in_memory_order(codes),
        found,
        in_memory_order(on_cpu.copy_(part)),
    )
    return shards.like(numbers, codes.to(part.device)), scales.of_blocks(found, numbers)


def convert(
    states: dict[str, Any],
    param: torch.Tensor,
    group: Mapping[str, Any],
    signs: dict[str, bool],
    otherwise: torch.dtype | None = None,
) -> bool:
    """Stores the states of one parameter as its group's options ask, in place.

    Args:
        states: of ``optimizer.state``.
        param: whose they are.
        group: its parameter group.
        signs: the states of the rule, and whether their numbers may be negative.
        otherwise: the dtype of states where the group asks for none; None keeps those that they
            have, but float32 for codes.

    Raises:
        ValueError: codes without scales, or with those of other shards.

    Returns:
        Whether any of them was stored otherwise.
    """
    dtype = otherwise
    if group.get("state_bits") is not None:
        dtype = state_dtype(param, group)
    is_changed = False
    for name, signed in signs.items():
        state = states.get(name)
        if not isinstance(state, torch.Tensor):
            continue
        is_coded = state.dtype == torch.uint8
        if is_coded and scale_name(name) in states:
            scales.check(states[scale_name(name)], state, scale_name(name))
        wanted = torch.float32 if is_coded and dtype is None else dtype
        if wanted in (None, state.dtype):
            continue
        if is_coded:
            if scale_name(name) not in states:
                raise ValueError(f"state {name!r} holds codes, but has no {scale_name(name)!r}")
            state = decoded(state, states.pop(scale_name(name)), signed)
        if wanted == torch.uint8:
            states[name], states[scale_name(name)] = encoded(state, signed)
        else:
            states[name] = state.to(wanted)
        is_changed = True
    if not group.get("master_weights"):
        is_changed |= states.pop(REMAINDER, None) is not None
    return is_changed
