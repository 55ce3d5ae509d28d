"""The state spaces of a block: parameters, and shared memory."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from ptx.cells import READABLE, WRITABLE, Region
from ptx.emitter import PARAMETER_BASE
from ptx.faults import Fault
from ptx.memory_access import Access
from ptx.module import Kernel
from ptx.numbers import UNSIGNED
from ptx.operation import Operation
from ptx.ordering import Ordering
from ptx.space import Space

POISON = 0xA5  # of shared memory that nobody has written


def words_of(data: np.ndarray) -> dict[int, np.ndarray]:
    return {size: data.view(dtype) for size, dtype in UNSIGNED.items()}


class Parameters:
    """A constant bank: the bytes that all threads were given."""

    def __init__(self, kernel: Kernel, parameter: bytes, threads: int) -> None:
        self._variables, self._threads = kernel.parameters.values(), threads
        data = np.zeros(math.ceil(len(parameter) / 16) * 16, np.uint8)
        data[: len(parameter)] = np.frombuffer(parameter, np.uint8)
        self._words = words_of(data)
        self._size = len(parameter)

    def load(self, access: Access, address: np.ndarray, thread: np.ndarray) -> list[np.ndarray]:
        offset = address - PARAMETER_BASE
        is_wrong = (offset < 0) | (offset > self._size - access.width)
        is_wrong |= offset & (access.width - 1) != 0
        if is_wrong.any():
            operation = Operation(access, offset, thread, self._threads)
            reason = f"misaligned or out of bounds: {access.width} bytes"
            operation.fault(reason, int(is_wrong.argmax()), f"{self._size} bytes of parameters")
        index, words = offset // access.size, self._words[access.size]
        return [words.take(index + n) for n in range(access.count)]


class SharedMemory:
    """That of several blocks that run at once, one behind the other."""

    def __init__(self, kernel: Kernel, ordering: Ordering, blocks: int) -> None:
        self._ordering = ordering
        variables = kernel.shared.values()
        end = max((v.offset + v.size for v in variables), default=0) + Kernel.SHARED_GAP
        self._stride = math.ceil(end / 16) * 16
        self._data = np.zeros(self._stride * blocks, np.uint8)
        self._place = np.zeros(ordering.blocks, np.int64)  # of a block among those
        flags = np.full(1, READABLE | WRITABLE, np.uint8)
        regions = [
            Region(n * self._stride + v.offset, v.size, 0, flags, (v.name,))
            for n in range(blocks)
            for v in variables
        ]
        self._space = Space(regions, words_of(self._data), is_poisoned=True)

    def begin_batch(self, blocks: np.ndarray) -> None:
        """At the start of a block nothing is written in its shared memory."""
        self._place[blocks] = np.arange(blocks.size)
        self._data[:] = POISON
        self._space.begin_launch(self._ordering)
        self._space.cells.flags[:] = READABLE | WRITABLE

    @property
    def poisoned_reads(self) -> int:
        return self._space.poisoned_reads

    def load(self, access: Access, address: np.ndarray, thread: np.ndarray) -> list[np.ndarray]:
        own = self._own(access, address, thread)
        with self._own_addresses():
            return self._space.load(access, own, thread)

    def store(self, access: Access, address: np.ndarray, values: tuple, thread: np.ndarray) -> None:
        own = self._own(access, address, thread)
        with self._own_addresses():
            self._space.store(access, own, values, thread)

    def atomic_add(
        self, access: Access, address: np.ndarray, value: np.ndarray, thread: np.ndarray
    ) -> np.ndarray:
        own = self._own(access, address, thread)
        with self._own_addresses():
            return self._space.atomic_add(access, own, value, thread)

    @contextlib.contextmanager
    def _own_addresses(self) -> Iterator[None]:
        """A fault names the address as the block knows it."""
        try:
            yield
        except Fault as fault:
            fault.address %= self._stride
            raise

    def _own(self, access: Access, address: np.ndarray, thread: np.ndarray) -> np.ndarray:
        """The addresses in each thread's own block."""
        is_outside = (address < 0) | (address > self._stride - access.width)
        if is_outside.any():
            operation = Operation(access, address, thread, self._ordering.threads)
            reason = f"out of bounds: {access.width} bytes"
            operation.fault(reason, int(is_outside.argmax()), "outside of shared memory")
        return address + self._place[thread // self._ordering.threads] * self._stride
