"""The memory of tensors that are not plain: what of them is stepped on this process."""

from __future__ import annotations

from typing import Any

import torch

from fusedopt.optimizers.shards import is_distributed


def local_tensor(
    tensor: torch.Tensor, param: torch.Tensor | None = None, is_grad: bool = False
) -> torch.Tensor:
    """The plain tensor that holds the memory of a tensor of some other class.

    A DTensor is stepped as its local shard; the result of a collective, once it is there. A
    subclass that adds behaviour to plain memory, such as a user's own Parameter class, is stepped
    as that memory.

    Args:
        tensor: a parameter, gradient or state.
        param: the parameter that it is a gradient or state of.
        is_grad: whether it is a gradient, which may be a copy; what is written may not.

    Raises:
        TypeError: a wrapper subclass, whose own data pointer means nothing.
        RuntimeError: of parameter and tensor only one is a DTensor.
        ValueError: a DTensor parameter that is a pending sum; a state that is placed otherwise than
            its parameter; another device mesh than the parameter's.
    """
    if hasattr(tensor, "trigger_wait"):  # torch.distributed's AsyncCollectiveTensor
        return local_tensor(tensor.trigger_wait(), param, is_grad)
    if param is not None and is_distributed(param) != is_distributed(tensor):
        which = "the parameter" if is_distributed(param) else "its gradient or a state"
        raise RuntimeError(f"got mixed torch.Tensor and DTensor: only {which} is a DTensor")
    if is_distributed(tensor):
        return local_tensor(_placed(tensor, param, is_grad)._local_tensor)
    if hasattr(tensor, "__tensor_flatten__"):
        raise TypeError(f"fusedopt cannot step a tensor of class {type(tensor).__name__}")
    return tensor


def _placed(tensor: Any, param: Any, is_grad: bool) -> Any:
    """A DTensor, placed as its parameter is.

    Gradients of replicated parameters arrive as parts of a sum in tensor and sequence parallelism,
    and those of others may be cut in another way; torch's optimizers leave redistribution to their
    first operation on them.
    """
    if param is None:
        if any(placement.is_partial() for placement in tensor.placements):
            raise ValueError("fusedopt cannot step a parameter that is a pending sum of its ranks")
        return tensor
    if tensor.device_mesh != param.device_mesh:
        raise ValueError(
            f"a gradient or state is on {tensor.device_mesh}, its parameter on {param.device_mesh}"
        )
    if tensor.placements == param.placements:
        return tensor
    if not is_grad:
        raise ValueError(f"a state is placed {tensor.placements}, its parameter {param.placements}")
    with torch.no_grad():
        return tensor.redistribute(placements=param.placements)
