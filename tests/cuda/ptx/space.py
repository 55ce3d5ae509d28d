"""A state space: the bytes of its regions, and where an access finds them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ptx.cells import Cells, Region
from ptx.checks import Checks
from ptx.memory_access import Access
from ptx.operation import Operation
from ptx.ordering import Ordering


class Space:
    """Its regions do not overlap."""

    def __init__(
        self, regions: list[Region], words: dict[int, np.ndarray], *, is_poisoned: bool = False
    ) -> None:
        self.regions = sorted(regions, key=lambda region: region.start)
        self.cells = Cells(self.regions)
        self._start = np.array([r.start for r in self.regions], np.int64)
        self._end = np.array([r.start + r.size for r in self.regions], np.int64)
        self._offset = np.array([r.offset for r in self.regions], np.int64)
        self._words = words
        self._is_poisoned = is_poisoned
        self._last_region = 0
        self.bytes_loaded = self.bytes_stored = self.poisoned_reads = 0

    def begin_launch(self, ordering: Ordering) -> None:
        self.ordering = ordering
        self.cells.begin_launch()
        self._checks = Checks(self.cells, ordering, self.where, self._is_poisoned)

    def load(self, access: Access, address: np.ndarray, thread: np.ndarray) -> list[np.ndarray]:
        operation = Operation(access, address, thread, self.ordering.threads)
        region = self._locate(operation)
        for part, cells in self._parts(operation, region):
            self.poisoned_reads += self._checks.load(part, cells)
        self.bytes_loaded += access.width * address.size
        words, index = self._words[access.size], self._index(operation, region)
        return [words.take(index + n) for n in range(access.count)]

    def store(self, access: Access, address: np.ndarray, values: tuple, thread: np.ndarray) -> None:
        operation = Operation(access, address, thread, self.ordering.threads)
        region = self._locate(operation)
        for part, cells in self._parts(operation, region):
            self._checks.store(part, cells)
        self.bytes_stored += access.width * address.size
        words, index = self._words[access.size], self._index(operation, region)
        for n, value in enumerate(values):
            words[index + n] = value

    def atomic_add(
        self, access: Access, address: np.ndarray, value: np.ndarray, thread: np.ndarray
    ) -> np.ndarray:
        """One after the other; what was there before each."""
        order = self.ordering.order_of_atomics(address.size)
        operation = Operation(access, address[order], thread[order], self.ordering.threads)
        region = self._locate(operation)
        for part, cells in self._parts(operation, region):
            self._checks.atomic(part, cells)
        words, index = self._words[access.size], self._index(operation, region)
        old = np.empty_like(value)
        for n, i in zip(order, index.tolist(), strict=True):
            old[n] = words[i]
            words[i] = np.add(words[i], value[n])
        return old

    def _locate(self, operation: Operation) -> int | np.ndarray:
        """The region of each access, or the one of all."""
        address, width = operation.address, operation.width
        is_misaligned = address & (width - 1) != 0
        if is_misaligned.any():
            n = int(is_misaligned.argmax())
            operation.fault(f"misaligned access of {width} bytes", n, self.where(address[n]))
        last = self._last_region
        if last < self._start.size:
            lowest, highest = address.min(), address.max()
            if self._start[last] <= lowest and highest <= self._end[last] - width:
                return last
        region = np.searchsorted(self._start, address, "right") - 1
        end = self._end[region] if self._end.size else address
        is_outside = (region < 0) | (address > end - width)
        if is_outside.any():
            n = int(is_outside.argmax())
            operation.fault(f"out of bounds: {width} bytes", n, self.where(address[n]))
        self._last_region = int(region[0])
        return region

    def _parts(
        self, operation: Operation, region: int | np.ndarray
    ) -> Iterator[tuple[Operation, np.ndarray]]:
        """The operation in parts whose cells have one size, and the cells of each access."""
        finest = operation.width.bit_length() - 1
        regions = np.unique(region) if np.ndim(region) else np.array([region])
        coarse = regions[self.cells.shift[regions] > finest]
        if coarse.size:
            self.cells.split(coarse, finest)
        shifts = np.unique(self.cells.shift[regions]).tolist()
        if len(shifts) == 1:
            yield operation, self.cells.at(operation.address, region, shifts[0], operation.width)
            return
        for shift in shifts:
            which = np.flatnonzero(self.cells.shift[region] == shift)
            part = operation.of(which)
            yield part, self.cells.at(part.address, region[which], shift, part.width)

    def _index(self, operation: Operation, region: int | np.ndarray) -> np.ndarray:
        """Where the accesses' first elements are among the words of their size."""
        return (operation.address + self._offset[region]) // operation.access.size

    def byte_flags(self, address: int, size: int) -> np.ndarray:
        """What is known of bytes that lie in one region."""
        region = int(np.searchsorted(self._start, address, "right")) - 1
        return self.cells.byte_flags(region, address, size)

    def where(self, address: int) -> str:
        """The region at an address, or the last one before it."""
        n = int(np.searchsorted(self._start, address, "right")) - 1
        if n < 0:
            return "ahead of every allocation"
        names = " and ".join(repr(name) for name in self.regions[n].names)
        if address < self._end[n]:
            return f"byte {address - self._start[n]} of {names}"
        return f"{address - self._end[n]} bytes behind the end of {names}"
