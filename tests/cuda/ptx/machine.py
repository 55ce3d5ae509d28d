"""Runs some blocks side by side: threads that are at the same basic block run it together."""

from __future__ import annotations

import heapq
from typing import NoReturn

import numpy as np

from ptx.block_memory import POISON, Parameters, SharedMemory
from ptx.compiler import code_of
from ptx.control_flow import BARRIERS, EXITS, MEETING, WARP_BARRIERS, BasicBlock
from ptx.faults import Fault
from ptx.instruction import Instruction
from ptx.module import Kernel
from ptx.ordering import WARP, Ordering
from ptx.space import Space

ALL_OF_A_WARP = 0xFFFFFFFF
WAITS = BARRIERS | WARP_BARRIERS | {MEETING}

# Threads that go on together: their numbers in the launch, and their registers.
Registers = dict[str, np.ndarray]
Group = tuple[np.ndarray, Registers]


class Machine:
    def __init__(
        self,
        kernel: Kernel,
        ordering: Ordering,
        global_memory: Space,
        shared_memory: SharedMemory,
        parameters: Parameters,
    ) -> None:
        self.kernel, self.ordering = kernel, ordering
        self.global_memory, self.shared_memory = global_memory, shared_memory
        self.parameters = parameters

    # ---- what instructions ask for ----
    def special(self, register: str, thread: np.ndarray) -> np.ndarray:
        threads = self.ordering.threads
        values = {
            "%tid.x": thread % threads,
            "%ctaid.x": thread // threads,
            "%ntid.x": np.full(thread.size, threads),
            "%nctaid.x": np.full(thread.size, self.ordering.blocks),
        }
        return values[register].astype(np.uint32)

    def fence(self, thread: np.ndarray) -> None:
        for t in thread.tolist():
            self.ordering.fence(t)

    def largest_of_warp(self, values: np.ndarray, thread: np.ndarray) -> np.ndarray:
        """Of whole warps: the largest value of each, for all of its threads."""
        _, warp = np.unique(self.ordering.warp_of(thread), return_inverse=True)
        largest = np.full(warp.max() + 1, np.iinfo(values.dtype).min, values.dtype)
        np.maximum.at(largest, warp, values)
        return largest[warp]

    def check_divisor(
        self, instruction: Instruction, divisor: np.ndarray, thread: np.ndarray
    ) -> None:
        if not divisor.all():
            self._fault("integer division by zero", instruction, int(thread[divisor.argmin()]))

    # ---- running ----
    def run(self, blocks: np.ndarray) -> None:
        """Of the basic blocks where threads are, the first is next: there branches meet again."""
        self.shared_memory.begin_batch(blocks)
        threads = self.ordering.threads
        thread = (blocks[:, None] * threads + np.arange(threads)).ravel()
        self._queue: list[int] = []
        self._groups: dict[int, list[Group]] = {}
        self._waiting: dict[int, Group] = {}  # for a barrier, by the block behind it
        self._put(0, thread, {})
        while self._queue:
            at = heapq.heappop(self._queue)
            self._run_block(at, *self._merged(at, self._groups.pop(at)))
        for behind, (thread, _) in self._waiting.items():
            end = self.kernel.blocks[behind - 1].end
            team = "block" if end.opcode in BARRIERS else "warp"
            reason = f"a barrier that not all threads of the {team} reach"
            self._fault(reason, end, int(thread[0]))

    def _run_block(self, at: int, thread: np.ndarray, registers: Registers) -> None:
        block = self.kernel.blocks[at]
        block.runs += 1
        try:
            code_of(self.kernel, block)(registers, self, thread)
            is_taken = self._is_taken(block, registers)
        except KeyError as error:
            self._refuse_unwritten(at, error.args[0], int(thread[0]))
            raise
        if block.end is not None and block.end.opcode in EXITS:
            return
        if block.end is not None and block.end.opcode in WAITS:
            self._check_mask(block.end, thread, registers)
            self._wait(at + 1, thread, registers, block.end.opcode)
        elif block.target is None:
            self._put(at + 1, thread, registers)
        else:
            for target, which in ((block.target, is_taken), (at + 1, ~is_taken)):
                if which.all():
                    self._put(target, thread, registers)
                elif which.any():
                    self._put(target, *self._some(target, which, thread, registers))

    def _is_taken(self, block: BasicBlock, registers: Registers) -> np.ndarray:
        """Which threads branch; for all of them alike where there is no guard."""
        if not block.guard:
            return np.array([True])
        return registers[block.guard.lstrip("!")] != block.guard.startswith("!")

    def _refuse_unwritten(self, at: int, register: str, thread: int) -> None:
        following = self.kernel.blocks[at + 1 : at + 2]
        for block in (self.kernel.blocks[at], *following):
            for instruction in block.instructions:
                if register in instruction.reads:
                    self._fault(f"{register} was never written", instruction, thread)

    def _some(self, at: int, which: np.ndarray, thread: np.ndarray, registers: Registers) -> Group:
        """Some of the threads, with what is live where they go."""
        live = self._live(at)
        return thread[which], {r: v[which] for r, v in registers.items() if r in live}

    def _live(self, at: int) -> frozenset[str]:
        return self.kernel.blocks[at].live if at < len(self.kernel.blocks) else frozenset()

    def _put(self, at: int, thread: np.ndarray, registers: Registers) -> None:
        """Behind the last basic block a thread ends."""
        if at == len(self.kernel.blocks):
            return
        if at not in self._groups:
            heapq.heappush(self._queue, at)
        self._groups.setdefault(at, []).append((thread, registers))

    def _merged(self, at: int, groups: list[Group]) -> Group:
        if len(groups) == 1:
            return groups[0]
        thread = np.concatenate([g[0] for g in groups])
        live = self._live(at).intersection(set().union(*(g[1] for g in groups)))
        return thread, {register: joined(register, groups) for register in live}

    def _check_mask(
        self, instruction: Instruction, thread: np.ndarray, registers: Registers
    ) -> None:
        """Where a register says which threads of a warp take part, all have to."""
        for register in instruction.reads:
            is_partial = registers[register].view(np.uint32) != ALL_OF_A_WARP
            if is_partial.any():
                self._fault("a part of a warp", instruction, int(thread[is_partial.argmax()]))

    def _wait(self, behind: int, thread: np.ndarray, registers: Registers, opcode: str) -> None:
        """Until all threads of the block are there, or all of the warp."""
        groups = [(thread, registers)]
        if behind in self._waiting:
            groups.append(self._waiting.pop(behind))
        thread, registers = self._merged(behind, groups)
        if opcode in BARRIERS:
            team, size = thread // self.ordering.threads, self.ordering.threads
        else:
            team, size = self.ordering.warp_of(thread), WARP
        arrived = np.bincount(team)
        is_complete = arrived == size
        for complete in np.flatnonzero(is_complete).tolist():
            if opcode in BARRIERS:
                self.ordering.barrier(complete)
            elif opcode in WARP_BARRIERS:
                self.ordering.warp_barrier(complete)
        which = is_complete[team]
        if which.any():
            self._put(behind, *self._some(behind, which, thread, registers))
        if not which.all():
            self._waiting[behind] = self._some(behind, ~which, thread, registers)

    def _fault(self, reason: str, instruction: Instruction, number: int) -> NoReturn:
        block, thread = divmod(number, self.ordering.threads)
        raise Fault(
            reason, self.kernel.name, instruction.line, instruction.text, block, thread
        ) from None


def joined(register: str, groups: list[Group]) -> np.ndarray:
    """A register of all groups; poison where a group comes from where it has no value."""
    dtype = next(registers[register].dtype for _, registers in groups if register in registers)
    poison = np.frombuffer(bytes([POISON]) * dtype.itemsize, f"u{dtype.itemsize}").astype(dtype)
    parts = [
        registers[register] if register in registers else np.broadcast_to(poison, thread.size)
        for thread, registers in groups
    ]
    return np.concatenate(parts)
