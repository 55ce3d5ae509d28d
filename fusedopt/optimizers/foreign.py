"""Checkpoints of other packages, in the form of this one's."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native
from fusedopt.optimizers import scales, storage
from fusedopt.peers import bitsandbytes, torchao
from fusedopt.peers.quantized import Quantized

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import ModuleType

_PEERS: tuple[ModuleType, ...] = (bitsandbytes, torchao)

# By how many units in the last place a peer's table may differ from ours: it is computed by a
# vectorised operation of torch's, whose rounding depends on the CPU.
_ULPS = 2

# What a checkpoint of another package has no word on, and what is left as it is then.
_NOT_OF_THE_FORMULA = ("foreach", "fused", "capturable")


@functools.cache
def _code_values(signed: bool) -> torch.Tensor:
    codes = torch.arange(256, dtype=torch.uint8, device="cpu")
    return storage.decoded(codes, torch.ones(1, device="cpu"), signed)


def translated(
    rule: str, groups: Sequence[Mapping[str, Any]], state_dict: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """A checkpoint under our keys.

    Codes stay what they are if their blocks and, but for rounding, their table are ours; other
    codes become float32 numbers.

    Args:
        rule: the name of the rule that is to go on with it.
        groups: the parameter groups that it is loaded into.
        state_dict: of whichever package.

    Returns:
        A new dictionary, which shares tensors with the given one, or this one itself if no package
        that is known has written it. And whether codes became numbers.

    Raises:
        ValueError, NotImplementedError: what does not map, by group, parameter and key.
    """
    peer = next((peer for peer in _PEERS if peer.wrote(state_dict)), None)
    if peer is None:
        return state_dict, False
    ours, is_converted = translated_from(peer, rule, state_dict)
    for group, into in zip(ours["param_groups"], groups, strict=False):
        for name in into.keys() & _NOT_OF_THE_FORMULA:
            group.setdefault(name, into[name])
    return ours, is_converted


def translated_from(
    peer: ModuleType, rule: str, state_dict: Mapping[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The same of what a known package has made: its checkpoint, or the parts of an optimizer."""
    groups, state, is_converted = [], dict(state_dict["state"]), False
    for index, group in enumerate(state_dict["param_groups"]):
        where = f"parameter group {index}"
        groups.append(peer.options(group, rule, where))
        names = group.get("param_names", ())
        for position, key in enumerate(group["params"]):
            called = f" ({names[position]!r})" if position < len(names) else ""
            at = f"{where}, parameter {position}{called}"
            if key in state:
                theirs = peer.states(state[key], rule, at)
                state[key] = _under_our_keys(theirs, rule, at)
                is_converted |= any(
                    isinstance(value, Quantized) and storage.scale_name(name) not in state[key]
                    for name, value in theirs.items()
                )
    return {**state_dict, "state": state, "param_groups": groups}, is_converted


def _under_our_keys(
    states: Mapping[str, torch.Tensor | Quantized], rule: str, where: str
) -> dict[str, Any]:
    signs = _native.states(rule)
    ours: dict[str, Any] = {}
    for name, state in states.items():
        if name == "step" and not _native.counts_steps(rule):
            continue
        if not isinstance(state, Quantized):
            ours[name] = state
        elif name not in signs:
            raise ValueError(f"{where}: the rule {rule!r} has no state {name!r}")
        elif state.block == scales.BLOCK and state.has_values(_code_values(signs[name]), _ULPS):
            ours[name] = state.codes
            ours[storage.scale_name(name)] = scales.of_blocks(state.scales, state.codes)
        else:
            ours[name] = state.numbers()
    return ours
