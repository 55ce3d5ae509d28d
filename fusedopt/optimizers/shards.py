"""Which part of a parameter this process holds: of a DTensor its shard, else all of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


class Cut(NamedTuple):
    """One cut of a dimension, by one dimension of the device mesh."""

    dim: int
    parts: int
    part: int  # that this process holds


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether it is a DTensor, without importing torch.distributed."""
    return isinstance(getattr(tensor, "_local_tensor", None), torch.Tensor)


def local(tensor: Any) -> torch.Tensor:
    """The part that this process holds, in the tensor's own memory."""
    part = tensor.detach()
    return part.to_local() if is_distributed(tensor) else part  # type: ignore[no-any-return]


def like(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """What each process has a part of, placed as another tensor of the whole's shape is."""
    if not is_distributed(tensor):
        return part
    whole = torch.empty_like(tensor, dtype=part.dtype, memory_format=torch.contiguous_format)
    local(whole).copy_(part)
    return whole


def fits(value: Any, param: Any) -> bool:
    """Whether each process has, or can get, its part of a value for a parameter."""
    if not is_distributed(value):
        return True
    return is_distributed(param) and bool(value.device_mesh == param.device_mesh)


def as_placed(value: Any, param: Any) -> torch.Tensor:
    """A value that fits a parameter, placed as it is.

    Args:
        value: the whole, on every process; or a DTensor, which may take a collective.
        param: which may be a DTensor.
    """
    if is_distributed(value):
        return value.detach().redistribute(placements=param.placements)  # type: ignore[no-any-return]
    if not is_distributed(param):
        return value  # type: ignore[no-any-return]
    start, sizes = _part(param.shape, cuts(param))
    box = tuple(slice(o, o + n) for o, n in zip(start, sizes, strict=True))
    return like(param, value.detach()[box])


def cuts(param: Any) -> list[Cut]:
    """The cuts of a parameter in the order in which they are made; none if it is no DTensor.

    Raises:
        NotImplementedError: a process holds elements that are not neighbours in each dimension.
    """
    if not is_distributed(param):
        return []
    mesh, placements = param.device_mesh, param.placements
    place = mesh.get_coordinate() or [0] * mesh.ndim
    made: list[Cut] = []
    late: list[Cut] = []
    for m, placement in enumerate(placements):
        dim = getattr(placement, "dim", None)
        if dim is None:
            continue  # replicated
        cut = Cut(dim, mesh.size(m), place[m])
        factor = getattr(placement, "split_factor", None)
        # FSDP2 cuts what tensor parallelism has cut, by an earlier dimension of the mesh.
        later = math.prod(
            mesh.size(k)
            for k in range(m + 1, mesh.ndim)
            if getattr(placements[k], "dim", None) == dim
        )
        if factor not in (None, 1, later):
            raise NotImplementedError(f"its shards, placed {placements}, are not in one piece")
        (made if factor in (None, 1) else late).append(cut)
    return made + late


def _part(shape: Sequence[int], made: list[Cut]) -> tuple[list[int], list[int]]:
    """Where this process's part of a tensor that is cut so begins, and its sizes."""
    start, sizes = [0] * len(shape), list(shape)
    for cut in made:
        most = -(-sizes[cut.dim] // cut.parts)  # as torch.chunk cuts
        first = min(cut.part * most, sizes[cut.dim])
        start[cut.dim] += first
        sizes[cut.dim] = min(most, sizes[cut.dim] - first)
    return start, sizes


def local_sizes(shape: Sequence[int], param: torch.Tensor) -> list[int]:
    """Sizes of this process's part of a tensor that is placed as a parameter is."""
    return _part(shape, cuts(param))[1]


def part_of(param: torch.Tensor) -> tuple[int, int]:
    """How many elements a parameter has in all, and the number of this process's first one.

    Elements are counted shard by shard, in the order of the dimensions: cut along the first, a
    shard's have the numbers that they have in the whole. Each has a number of its own, which is the
    same on all processes that hold it.
    """
    first = 0
    made = cuts(param)
    if made:
        start, sizes = _part(param.shape, made)
        for dim, offset in enumerate(start):
            first += offset * math.prod(sizes[:dim]) * math.prod(param.shape[dim + 1 :])
    return param.numel(), first
