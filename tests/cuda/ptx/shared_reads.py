"""Reads of bytes that several threads read: all of them have to come before the next write."""

from __future__ import annotations

import numpy as np


class SharedReads:
    def __init__(self) -> None:
        self._bytes: list[np.ndarray] = []
        self._stamps: list[np.ndarray] = []

    def add(self, address: np.ndarray, size: int, stamps: np.ndarray) -> None:
        """Reads of so many bytes each."""
        self._bytes.append((address[:, None] + np.arange(size)).ravel())
        self._stamps.append(np.repeat(stamps, size))

    def overlapping(self, address: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads of what accesses touch: for each read which access it is, and its stamp."""
        self._bytes = [np.concatenate(self._bytes)]
        self._stamps = [np.concatenate(self._stamps)]
        (read,), (stamps,) = self._bytes, self._stamps
        accessed = (address[:, None] + np.arange(size)).ravel()
        order = np.argsort(accessed)
        place = np.searchsorted(accessed, read, sorter=order)
        nearest = order[np.minimum(place, accessed.size - 1)]
        is_hit = accessed[nearest] == read
        return nearest[is_hit] // size, stamps[is_hit]
