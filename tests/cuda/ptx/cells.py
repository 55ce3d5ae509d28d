"""What is known of every byte of a state space.

A cell is as large as the smallest access to its region so far, which makes it as exact as a byte:
where a smaller access comes, the cells of its region are split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# What a byte allows, and what happened to it.
READABLE, WRITABLE, WRITTEN, TOUCHED, STORED = 1, 2, 4, 8, 16
# Within one launch: read through the read-only path, by an atomic, or by several threads.
READ_ONLY_PATH, ATOMIC, SHARED_READS = 32, 64, 128
OF_A_LAUNCH = READ_ONLY_PATH | ATOMIC | SHARED_READS

LARGEST_SHIFT = 4  # 16 bytes, the widest access


@dataclass
class Region:
    """Bytes that lie side by side and belong together."""

    start: int
    size: int
    offset: int  # from an address to the place of the byte behind it
    flags: np.ndarray  # of each byte, or of all
    names: tuple[str, ...] = ()


def coarsest_shift(region: Region) -> int:
    """The largest cells in which all bytes have the same flags."""
    if region.flags.size == 1:
        return LARGEST_SHIFT
    padded = whole_cells(region)
    for shift in range(LARGEST_SHIFT, 0, -1):
        cells = padded.reshape(-1, 1 << shift)
        if (cells == cells[:, :1]).all():
            return shift
    return 0


def whole_cells(region: Region) -> np.ndarray:
    """Flags of each byte from one multiple of the largest cell to another."""
    largest = 1 << LARGEST_SHIFT
    ahead, behind = region.start % largest, -(region.start + region.size) % largest
    return np.pad(region.flags, (ahead, behind), mode="edge")


class Cells:
    def __init__(self, regions: list[Region]) -> None:
        self.shift = np.array([coarsest_shift(r) for r in regions], np.int64)
        self._first_address = np.array(
            [r.start >> LARGEST_SHIFT << LARGEST_SHIFT for r in regions], np.int64
        )
        self._count = np.zeros(len(regions), np.int64)
        # The cell of an address is the address, shifted, plus this.
        self._base = np.zeros(len(regions), np.int64)
        self.flags = np.zeros(0, np.uint8)
        self.writer = np.zeros(0, np.int64)  # stamp of the last write
        self.reader = np.zeros(0, np.int64)  # stamp of a read since then
        pieces = []
        for n, region in enumerate(regions):
            cell = 1 << int(self.shift[n])
            if region.flags.size == 1:
                end = region.start + region.size
                bytes_ = -(-end // 16) * 16 - int(self._first_address[n])
                flags = np.repeat(region.flags, bytes_ // cell)
            else:
                flags = whole_cells(region)[::cell]
            pieces.append((n, flags))
        self._append(
            [(n, f, np.zeros(f.size, np.int64), np.zeros(f.size, np.int64)) for n, f in pieces]
        )

    def _append(self, pieces: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]]) -> None:
        end = self.flags.size
        for region, flags, _, _ in pieces:
            self._base[region] = end - (self._first_address[region] >> self.shift[region])
            self._count[region] = flags.size
            end += flags.size
        self.flags = np.concatenate([self.flags, *(p[1] for p in pieces)])
        self.writer = np.concatenate([self.writer, *(p[2] for p in pieces)])
        self.reader = np.concatenate([self.reader, *(p[3] for p in pieces)])

    def split(self, regions: np.ndarray, shift: int) -> None:
        """Makes cells of regions that small."""
        pieces = []
        for region in regions.tolist():
            factor = 1 << int(self.shift[region]) - shift
            own = self.of_region(region)
            arrays = (np.repeat(a[own], factor) for a in (self.flags, self.writer, self.reader))
            pieces.append((region, *arrays))
            self.shift[region] = shift
        self._append(pieces)

    def of_region(self, region: int) -> slice:
        first = self._base[region] + (self._first_address[region] >> self.shift[region])
        return slice(first, first + self._count[region])

    def at(
        self, address: np.ndarray, region: int | np.ndarray, shift: int, width: int
    ) -> np.ndarray:
        """The cells that accesses touch: a row for each access."""
        first = (address >> shift) + self._base[region]
        return first[:, None] + np.arange(width >> shift)

    def byte_flags(self, region: int, address: int, size: int) -> np.ndarray:
        """Flags of bytes of a region."""
        own = self.of_region(region)
        seen = (self.reader[own] | self.writer[own]) != 0
        flags = self.flags[own] | np.where(seen, TOUCHED, 0).astype(np.uint8)
        begin = address - int(self._first_address[region])
        return np.repeat(flags, 1 << int(self.shift[region]))[begin : begin + size]

    def begin_launch(self) -> None:
        """The launches before this one are over: nothing of them races with it."""
        self.flags[(self.reader | self.writer) != 0] |= TOUCHED
        self.flags &= np.uint8(~OF_A_LAUNCH & 0xFF)
        self.writer[:] = 0
        self.reader[:] = 0
