"""Runs the blocks of a launch, several of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptx.block_memory import Parameters, SharedMemory
from ptx.machine import Machine
from ptx.memory import Memory
from ptx.module import Kernel
from ptx.ordering import Ordering


@dataclass
class Statistics:
    blocks: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0
    # Loads from shared memory of bytes that nobody had written. A compiler may load early what it
    # does not use in the end, so this alone is no fault; the bytes are 0xa5.
    poisoned_reads: int = 0


class Launch:
    """A kernel with its parameter, on a grid of one dimension.

    The blocks run in `order`, which may leave some out; as many as `batch` run at once, and a
    `seed` decides in which order their threads' atomics happen.
    """

    def __init__(
        self,
        kernel: Kernel,
        parameter: bytes,
        blocks: int,
        threads: int,
        memory: Memory,
        order: Sequence[int] | None = None,
        *,
        batch: int = 32,
        seed: int = 0,
    ) -> None:
        if len(parameter) != kernel.parameter_size:
            raise ValueError(f"{len(parameter)} bytes of parameters for {kernel.parameter_size}")
        if kernel.required_threads is not None and threads > kernel.required_threads:
            raise ValueError(f"{threads} threads in a block of {kernel.required_threads} at most")
        self.order = np.arange(blocks) if order is None else np.asarray(order, np.int64)
        if len(set(self.order.tolist())) != self.order.size:
            raise ValueError("a block runs once")
        self.kernel, self.memory = kernel, memory
        self.blocks, self.threads, self.batch = blocks, threads, batch
        self.parameter, self.seed = parameter, seed

    def run(self) -> Statistics:
        ordering = Ordering(self.blocks, self.threads, self.seed)
        global_memory = self.memory.begin_launch(ordering)
        before = (global_memory.bytes_loaded, global_memory.bytes_stored)
        shared_memory = SharedMemory(self.kernel, ordering, self.batch)
        parameters = Parameters(self.kernel, self.parameter, self.threads)
        machine = Machine(self.kernel, ordering, global_memory, shared_memory, parameters)
        with np.errstate(all="ignore"):
            for first in range(0, self.order.size, self.batch):
                machine.run(self.order[first : first + self.batch])
        return Statistics(
            self.order.size,
            global_memory.bytes_loaded - before[0],
            global_memory.bytes_stored - before[1],
            shared_memory.poisoned_reads,
        )
