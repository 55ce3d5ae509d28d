"""Global memory: the allocations that a test registers."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np

from ptx.cells import READABLE, STORED, TOUCHED, WRITABLE, WRITTEN, Region
from ptx.ordering import Ordering
from ptx.space import Space

Mask = bool | np.ndarray

# This process's own memory, as words of every size.
_BASE = 4096
_SIZE = (1 << 47) - _BASE
_WORDS = {
    ctypes.sizeof(word): np.frombuffer(
        (word * (_SIZE // ctypes.sizeof(word))).from_address(_BASE), word
    )
    for word in (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)
}


@dataclass(frozen=True)
class Allocation:
    address: int
    size: int
    host: int
    name: str
    flags: np.ndarray  # of each byte, or of all

    @property
    def end(self) -> int:
        return self.address + self.size


def byte_flags(size: int, masks: dict[int, Mask]) -> np.ndarray:
    """The flags whose masks hold, for each byte, or one for all of them."""
    result = np.zeros(1, np.uint8)
    for flag, mask in masks.items():
        mask = np.asarray(mask, bool).reshape(-1)
        if mask.size not in (1, size):
            raise ValueError(f"a mask of {mask.size} bytes for {size}")
        result = result | np.where(mask, flag, 0).astype(np.uint8)
    return result


class Memory:
    """What launches may touch. What is written stays written from one launch to the next."""

    def __init__(self) -> None:
        self._allocations: list[Allocation] = []
        self._space: Space | None = None

    def register(
        self,
        address: int,
        size: int,
        *,
        host: int | None = None,
        name: str = "",
        readable: Mask = True,
        writable: Mask = True,
        written: Mask = True,
    ) -> None:
        """Bytes that kernels know by an address, and this process by another, if they differ.

        What may be read or written and what holds a value already is the same for all bytes, or
        said for each. Allocations may overlap: what one of them allows is allowed.
        """
        if self._space is not None:
            raise ValueError("register all memory ahead of the first launch")
        host = address if host is None else host
        if (address - host) % 16:
            raise ValueError("an address is as aligned for the kernel as it is in this process")
        flags = byte_flags(size, {READABLE: readable, WRITABLE: writable, WRITTEN: written})
        self._allocations.append(Allocation(address, size, host, name, flags))

    def begin_launch(self, ordering: Ordering) -> Space:
        if self._space is None:
            self._space = Space(regions([a for a in self._allocations if a.size]), _WORDS)
        self._space.begin_launch(ordering)
        return self._space

    def untouched(self, name: str) -> int:
        """Bytes of what has this name that may be read or written, and never were."""
        return self._count(name, READABLE | WRITABLE, TOUCHED | STORED)

    def unwritten(self, name: str) -> int:
        """Bytes of what has this name that may be written, and never were."""
        return self._count(name, WRITABLE, STORED)

    def _count(self, name: str, permission: int, event: int) -> int:
        named = [a for a in self._allocations if a.name == name]
        if not named:
            raise KeyError(name)
        total = 0
        for allocation in named:
            left = np.broadcast_to(allocation.flags & permission != 0, allocation.size)
            if self._space is not None and allocation.size:
                flags = self._space.byte_flags(allocation.address, allocation.size)
                left = left & (flags & event == 0)
            total += int(left.sum())
        return total


def regions(allocations: list[Allocation]) -> list[Region]:
    """One for each allocation, or for several that overlap."""
    groups: list[list[Allocation]] = []
    end = -1
    for allocation in sorted(allocations, key=lambda a: a.address):
        if allocation.address < end:
            groups[-1].append(allocation)
        else:
            groups.append([allocation])
        end = max(end, allocation.end)
    return [merged(group) for group in groups]


def merged(group: list[Allocation]) -> Region:
    start, end = group[0].address, max(a.end for a in group)
    offset = group[0].host - start - _BASE
    names = tuple(dict.fromkeys(a.name for a in group))
    if len(group) == 1:
        return Region(start, end - start, offset, group[0].flags, names)
    flags = np.zeros(end - start, np.uint8)
    for allocation in group:
        if allocation.host - allocation.address - _BASE != offset:
            raise ValueError(f"{' and '.join(names)} overlap for the kernel but not here")
        flags[allocation.address - start : allocation.end - start] |= allocation.flags
    return Region(start, end - start, offset, flags, names)
