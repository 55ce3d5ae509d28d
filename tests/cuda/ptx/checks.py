"""What an access may do, and what it leaves to be checked by those that come later.

Of the arrays for an operation each row is a thread, each column a cell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.cells import (
    ATOMIC,
    READ_ONLY_PATH,
    READABLE,
    SHARED_READS,
    STORED,
    WRITABLE,
    WRITTEN,
    Cells,
)
from ptx.operation import Operation
from ptx.ordering import Ordering, Place
from ptx.shared_reads import SharedReads


class Checks:
    """The checks of one launch in one state space."""

    def __init__(
        self,
        cells: Cells,
        ordering: Ordering,
        where: Callable[[int], str],
        is_poisoned: bool,
    ) -> None:
        self._cells, self._ordering, self._where = cells, ordering, where
        self._is_poisoned = is_poisoned
        self._shared_reads = SharedReads()
        self._atomics: dict[int, int] = {}  # of each byte, the atomic that touched it
        self._number = ordering.number_space()

    def load(self, operation: Operation, cells: np.ndarray) -> int:
        """How many of the loads got bytes that nobody wrote, where those may be read."""
        flags = self._cells.flags[cells]
        writer = self._cells.writer[cells]
        self._demand(operation, flags, READABLE, "read of memory that may not be read")
        if not self._is_poisoned:
            self._demand(operation, flags, WRITTEN, "read of memory that was never written")
        if operation.access.is_read_only:
            self._refuse(operation, writer != 0, "read-only load of what the launch writes")
        self._after(operation, writer, "write")
        self._after_atomics(operation, flags)
        self._note_read(operation, cells, flags)
        return int((flags & WRITTEN == 0).any(axis=1).sum()) if self._is_poisoned else 0

    def store(self, operation: Operation, cells: np.ndarray) -> None:
        flags = self._cells.flags[cells]
        self._demand(operation, flags, WRITABLE, "write of memory that may not be written")
        self._after_accesses(operation, cells, flags)
        self._after_atomics(operation, flags)
        self._cells.writer[cells] = self._ordering.stamps(operation.thread)[:, None]
        if not operation.is_disjoint:
            # Of two threads that write one cell just now, one finds the other's stamp.
            self._after(operation, self._cells.writer[cells], "write")
        self._cells.reader[cells] = 0
        settled = np.uint8(~(ATOMIC | SHARED_READS) & 0xFF)
        self._cells.flags[cells] = flags & settled | np.uint8(WRITTEN | STORED)

    def atomic(self, operation: Operation, cells: np.ndarray) -> None:
        flags = self._cells.flags[cells]
        reason = "atomic on memory that may not be read and written"
        self._demand(operation, flags, READABLE | WRITABLE, reason)
        self._demand(operation, flags, WRITTEN, "read of memory that was never written")
        self._after_accesses(operation, cells, flags)
        self._cells.flags[cells] |= np.uint8(ATOMIC | STORED)
        access = operation.access
        for address, thread in zip(
            operation.address.tolist(), operation.thread.tolist(), strict=True
        ):
            self._atomics.update(dict.fromkeys(range(address, address + access.width), address))
            if access.releases:
                self._ordering.release(thread)
            self._ordering.atomic(thread, self._key(address), access.returns)
            if access.acquires:
                self._ordering.acquire(thread)

    def _key(self, address: int) -> Place:
        """Names an address among those of all spaces."""
        return self._number, address

    def _demand(self, operation: Operation, flags: np.ndarray, needed: int, reason: str) -> None:
        self._refuse(operation, flags & needed != needed, reason)

    def _refuse(self, operation: Operation, is_wrong: np.ndarray, reason: str) -> None:
        if is_wrong.any():
            self._fault(operation, reason, int(is_wrong.any(axis=1).argmax()))

    # ---- races ----
    def _after(self, operation: Operation, stamps: np.ndarray, what: str) -> None:
        """Earlier accesses by other threads, given by their stamps, have to come before."""
        if not stamps.any():
            return
        foreign = (stamps != 0) & (Ordering.thread_of(stamps) != operation.thread[:, None])
        if foreign.any():
            self._demand_order(operation, np.nonzero(foreign)[0], stamps[foreign], what)

    def _demand_order(
        self, operation: Operation, rows: np.ndarray, stamps: np.ndarray, what: str
    ) -> None:
        is_ordered = self._ordering.ordered(stamps, operation.thread[rows])
        if not is_ordered.all():
            n = int(is_ordered.argmin())
            other = int(Ordering.thread_of(stamps[n]))
            block, thread = divmod(other, operation.threads_per_block)
            reason = f"race with the {what} of block {block}, thread {thread}"
            self._fault(operation, reason, int(rows[n]))

    def _after_accesses(self, operation: Operation, cells: np.ndarray, flags: np.ndarray) -> None:
        """Of a write: what was read or written otherwise comes before."""
        reason = "write of what the launch reads through the read-only path"
        self._refuse(operation, flags & READ_ONLY_PATH != 0, reason)
        self._after(operation, self._cells.writer[cells], "write")
        self._after(operation, self._cells.reader[cells], "read")
        if (flags & SHARED_READS).any():
            rows, stamps = self._shared_reads.overlapping(operation.address, operation.width)
            self._demand_order(operation, rows, stamps, "read")

    def _after_atomics(self, operation: Operation, flags: np.ndarray) -> None:
        """Of what is no atomic itself: those on the same bytes come before."""
        for row in np.flatnonzero((flags & ATOMIC).any(axis=1)).tolist():
            first, thread = int(operation.address[row]), int(operation.thread[row])
            touched = {self._atomics.get(first + n) for n in range(operation.width)} - {None}
            if not all(self._ordering.observed_all(thread, self._key(a)) for a in touched):
                self._fault(operation, "race with an atomic of another thread", row)

    def _note_read(self, operation: Operation, cells: np.ndarray, flags: np.ndarray) -> None:
        """A cell has room for one reader; more than one are listed."""
        earlier = self._cells.reader[cells]
        stamps = np.broadcast_to(self._ordering.stamps(operation.thread)[:, None], cells.shape)
        self._cells.reader[cells] = stamps
        if not (flags & WRITABLE).any():
            return
        if operation.access.is_read_only:
            self._cells.flags[cells] |= np.uint8(READ_ONLY_PATH)
        if earlier.any():
            foreign = Ordering.thread_of(earlier) != operation.thread[:, None]
            self._list_reads(operation, cells, earlier, foreign & (earlier != 0))
        if not operation.is_disjoint:
            self._list_reads(operation, cells, stamps, self._cells.reader[cells] != stamps)

    def _list_reads(
        self, operation: Operation, cells: np.ndarray, stamps: np.ndarray, which: np.ndarray
    ) -> None:
        if which.any():
            rows, columns = np.nonzero(which)
            size = operation.width // cells.shape[1]
            self._cells.flags[cells[which]] |= np.uint8(SHARED_READS)
            self._shared_reads.add(operation.address[rows] + columns * size, size, stamps[which])

    def _fault(self, operation: Operation, reason: str, n: int) -> None:
        operation.fault(reason, n, self._where(int(operation.address[n])))
