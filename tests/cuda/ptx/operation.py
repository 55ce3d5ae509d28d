"""A memory instruction as several threads run it at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np

from ptx.faults import Fault
from ptx.memory_access import Access


@dataclass(frozen=True)
class Operation:
    """Of its arrays each element is a thread's; threads are numbered through the launch."""

    access: Access
    address: np.ndarray
    thread: np.ndarray
    threads_per_block: int

    @property
    def width(self) -> int:
        return self.access.width

    def of(self, which: np.ndarray) -> Operation:
        """Of some of the threads."""
        return Operation(
            self.access, self.address[which], self.thread[which], self.threads_per_block
        )

    @cached_property
    def is_disjoint(self) -> bool:
        """Whether addresses ascend and no two accesses overlap."""
        return bool((self.address[1:] - self.address[:-1] >= self.width).all())

    def fault(self, reason: str, n: int, where: str) -> NoReturn:
        """Stops the launch because of what one of the threads does."""
        instruction = self.access.instruction
        block, thread = divmod(int(self.thread[n]), self.threads_per_block)
        raise Fault(
            reason,
            instruction.kernel,
            instruction.line,
            instruction.text,
            block,
            thread,
            int(self.address[n]),
            where,
        )
