"""The scales of a state that is stored in codes: one for each block, beside the codes."""

from __future__ import annotations

import math
from typing import Any

import torch

from fusedopt.optimizers import shards

# Elements that have one scale.
BLOCK = 256


def count(elements: int) -> int:
    """The blocks of so many elements."""
    return -(-elements // BLOCK)


def shape_of(param: torch.Tensor) -> tuple[int, ...]:
    """The shape of a parameter's scales, which are placed as the parameter is.

    Where no shard cuts a block, blocks are those of the whole parameter. The scales then lie in
    rows as the elements do, with those of several rows in one where only these make whole blocks:
    so the shape is the same on any number of processes, and cuts of the parameter are cuts of the
    scales. In one dimension are those of a plain tensor with its elements in another order.

    Elsewhere blocks are those of each shard. The shape, one longer than the parameter's, is then
    the number of shards in each dimension, and the blocks of a shard.

    Raises:
        NotImplementedError: a dimension that several dimensions of the device mesh cut unevenly.
    """
    if not (shards.is_distributed(param) or _is_in_order(param)):
        return (count(param.numel()),)
    made = shards.cuts(param)
    parts = [1] * param.dim()
    for cut in made:
        parts[cut.dim] *= cut.parts
    for dim, (size, n) in enumerate(zip(param.shape, parts, strict=True)):
        if size % n and sum(cut.dim == dim for cut in made) > 1:
            raise NotImplementedError(f"its dimension {dim} of size {size} is cut unevenly twice")
    most = [-(-size // n) for size, n in zip(param.shape, parts, strict=True)]
    rows, length = param.shape[0], math.prod(param.shape[1:])
    together = BLOCK // math.gcd(length, BLOCK)  # rows that make whole blocks
    in_rows = parts[0] == 1 or most[0] % together == 0
    in_columns = all(n == 1 for n in parts[1:]) or (
        param.dim() == 2 and together == 1 and most[1] % BLOCK == 0
    )
    if not (in_rows and in_columns):
        return *parts, count(math.prod(most))
    if param.dim() == 1:
        return (count(rows),)
    if rows <= together:
        return 1, count(param.numel())
    return -(-rows // together), together * length // BLOCK


def _is_in_order(param: torch.Tensor) -> bool:
    """Whether the states of a plain parameter lie in the order of its dimensions."""
    return torch.empty_like(param, device="meta").is_contiguous()


def empty(param: Any) -> torch.Tensor:
    """Memory for a parameter's scales; those that belong to no block are zero."""
    shape = shape_of(param)
    sizes = shards.local_sizes(shape, param)
    local = shards.local(param)
    scales = torch.empty(sizes, dtype=torch.float32, device=local.device)
    scales.view(-1)[count(local.numel()) :].zero_()
    if not shards.is_distributed(param):
        return scales
    stride = torch.empty(shape, device="meta").stride()
    placed: torch.Tensor = param.from_local(
        scales, param.device_mesh, param.placements, shape=torch.Size(shape), stride=stride
    )
    # from_local() moves them to the mesh's devices, which an offloaded parameter is not on.
    return placed.to(local.device)


def in_blocks(scales: torch.Tensor, elements: int) -> torch.Tensor:
    """This process's scales in one dimension, of so many elements."""
    return shards.local(scales).reshape(-1)[: count(elements)]


def of_blocks(numbers: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    """The scales of a parameter, of as many numbers in one dimension as this process has blocks."""
    beside = empty(param)
    in_blocks(beside, shards.local(param).numel()).copy_(numbers)
    return beside


def check(scales: torch.Tensor, codes: torch.Tensor, name: str) -> None:
    """Refuses scales that are not those of a state's blocks.

    Raises:
        ValueError: their dtype is another; or their shape, because they were saved of other shards.
    """
    expected = shape_of(codes)
    if scales.dtype != torch.float32:
        raise ValueError(f"state {name!r} has dtype {scales.dtype}, and scales are torch.float32")
    is_plain = not shards.is_distributed(codes) and scales.shape == (count(codes.numel()),)
    if is_plain or tuple(scales.shape) == expected:
        return
    raise ValueError(
        f"state {name!r} has shape {tuple(scales.shape)} where {expected} is needed: it was saved "
        "of a parameter whose shards were cut otherwise, within blocks of 256 elements; save after "
        "fusedopt.convert_states(optimizer, state_bits=32), and convert back after loading"
    )
