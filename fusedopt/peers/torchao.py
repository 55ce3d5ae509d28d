"""The checkpoints and optimizers of torchao, as of 0.18."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt.peers.quantized import Quantized

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "torchao"
MODULE = "torchao.optim"

# How a class is called beside the optimizer that it is.
PREFIXES, SUFFIXES = (), ("8bit", "4bit", "Fp8")

# What its constructors add to an object of torch's.
ATTRIBUTES = ("block_size", "bf16_stochastic_round", "is_adamw")


def _is_quantized(value: Any) -> bool:
    """Whether it is of one of the tensor subclasses, of 8 bits or fewer; they are not imported."""
    return isinstance(value, torch.Tensor) and hasattr(value, "codes") and hasattr(value, "scale")


def _is_distributed(value: Any) -> bool:
    return _is_quantized(getattr(value, "_local_tensor", None))


def wrote(state_dict: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, or the parts of an optimizer under the same keys, are of its making."""
    return any(
        _is_quantized(value) or _is_distributed(value)
        for states in state_dict.get("state", {}).values()
        if isinstance(states, dict)
        for value in states.values()
    )


def options(group: Mapping[str, Any], rule: str, where: str) -> dict[str, Any]:
    """A parameter group of its: the names are torch's, and the class says how weights decay."""
    return {**group, "maximize": False}


def states(theirs: Mapping[str, Any], rule: str, where: str) -> dict[str, torch.Tensor | Quantized]:
    """The states of one parameter: those in 8 bits as their codes, others decoded.

    Raises:
        NotImplementedError: a state of a DTensor.
        ValueError: codes that do not fit their scales.
    """
    return {name: _state(value, name, where) for name, value in theirs.items()}


def _state(value: Any, name: str, where: str) -> Any:
    if _is_distributed(value):
        raise NotImplementedError(
            f"{where}: {name!r} is a DTensor of {NAME}'s codes; save its full_tensor()"
        )
    if not _is_quantized(value):
        return value
    codes, scales = value.codes, value.scale
    if codes.shape != value.shape or codes.dtype != torch.uint8:  # 4 bits, or floats of 8
        return value.dequantize(torch.float32)
    blocks = scales.numel()
    if blocks == 0 or codes.numel() % blocks or not codes.is_contiguous():
        raise ValueError(
            f"{where}: {name!r} has codes of shape {tuple(codes.shape)}, which do not fit scales "
            f"of shape {tuple(scales.shape)}"
        )
    return Quantized(codes, value.qmap, scales, codes.numel() // blocks)


def storage(optimizer: Any) -> dict[str, Any]:
    """The options of storage that an object of its classes stands for.

    States in fewer than 8 bits, or in floats of 8, become codes of 8 bits.
    """
    return {"state_bits": 8, "stochastic_rounding": bool(optimizer.bf16_stochastic_round)}
