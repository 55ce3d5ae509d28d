"""Basic blocks, where they lead to, and which registers are live at their beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ptx.faults import UnknownInstruction
from ptx.instruction import Instruction

# What a basic block ends with.
BRANCHES = frozenset({"bra", "bra.uni"})
EXITS = frozenset({"ret", "exit"})
BARRIERS = frozenset({"bar.sync", "barrier.sync"})  # of all threads of the block
WARP_BARRIERS = frozenset({"bar.warp.sync"})
# Where a warp's threads meet for what they do together; it orders nothing.
MEETING = "meet.warp"
ENDS = BRANCHES | EXITS | BARRIERS | WARP_BARRIERS | {MEETING}

# A barrier's own operand; and the warp's threads that take part, who are all.
OF_THE_BLOCK, OF_THE_WARP = "0", frozenset({"-1", "0xffffffff"})


@dataclass
class BasicBlock:
    """Instructions that all run or none; the last may be a branch, an exit or a barrier."""

    index: int
    body: list[Instruction] = field(default_factory=list)
    end: Instruction | None = None
    # Threads whose guard allows it go to `target`, the others to the next block.
    guard: str = ""
    target: int | None = None
    live: frozenset[str] = frozenset()
    runs: int = 0
    code: Callable | None = None

    @property
    def instructions(self) -> list[Instruction]:
        return [*self.body, *([self.end] if self.end else [])]

    @property
    def successors(self) -> list[int]:
        if self.end is not None and self.end.opcode in EXITS:
            return []
        if self.target is None:
            return [self.index + 1]
        return [self.target, self.index + 1] if self.guard else [self.target]


def basic_blocks(statements: list[str | Instruction]) -> list[BasicBlock]:
    blocks = [BasicBlock(0)]
    labels: dict[str, int] = {}

    def begin() -> BasicBlock:
        if blocks[-1].instructions or blocks[-1].guard:
            blocks.append(BasicBlock(len(blocks)))
        return blocks[-1]

    for statement in statements:
        if isinstance(statement, str):
            labels[statement[:-1]] = begin().index
        elif statement.guard and statement.opcode not in BRANCHES:
            _add_guarded(statement, begin() if blocks[-1].end else blocks[-1])
            blocks.append(BasicBlock(len(blocks)))
            _add(statement, blocks[-1])
            blocks.append(BasicBlock(len(blocks)))
        else:
            if statement.kind == "redux":
                _add(meeting_for(statement), begin() if blocks[-1].end else blocks[-1])
            _add(statement, begin() if blocks[-1].end else blocks[-1])
    if not blocks[-1].instructions:
        blocks.pop()
    _resolve(blocks, labels)
    _find_live(blocks)
    return blocks


def meeting_for(instruction: Instruction) -> Instruction:
    """What comes ahead of an instruction that takes the values of all threads of a warp."""
    mask = instruction.operands[-1]
    return Instruction(instruction.kernel, instruction.line, f"{MEETING} {mask}")


def _takes_all(instruction: Instruction) -> bool:
    if instruction.opcode in BARRIERS:
        return instruction.operands == [OF_THE_BLOCK]
    is_of_warp = instruction.opcode in WARP_BARRIERS or instruction.opcode == MEETING
    # In a register it is seen as the kernel runs.
    return not is_of_warp or bool(instruction.reads) or instruction.operands[0] in OF_THE_WARP


def _add(instruction: Instruction, block: BasicBlock) -> None:
    if not _takes_all(instruction):
        raise UnknownInstruction(
            f"{instruction.kernel}, line {instruction.line}: {instruction.text}"
        )
    if instruction.opcode in ENDS:
        block.end = instruction
    else:
        block.body.append(instruction)


def _add_guarded(instruction: Instruction, block: BasicBlock) -> None:
    """A guard is a branch around its instruction: what is behind the next block is its target."""
    guard = instruction.guard
    block.guard = guard[1:] if guard.startswith("!") else f"!{guard}"
    block.target = block.index + 2


def _resolve(blocks: list[BasicBlock], labels: dict[str, int]) -> None:
    for block in blocks:
        if block.end is not None and block.end.opcode in BRANCHES:
            block.guard = block.end.guard
            block.target = labels[block.end.operands[0]]


def _find_live(blocks: list[BasicBlock]) -> None:
    """Registers that a block or one behind it may read before they are written, as sets of bits."""
    numbers: dict[str, int] = {}

    def bits_of(registers: set[str]) -> int:
        return sum(1 << numbers.setdefault(r, len(numbers)) for r in registers)

    used, written = [], []
    for block in blocks:
        reads, writes = _reads_and_writes(block)
        used.append(bits_of(reads))
        written.append(bits_of(writes))
    live = [0] * (len(blocks) + 1)
    changed = True
    while changed:
        changed = False
        for block in reversed(blocks):
            behind = 0
            for successor in block.successors:
                behind |= live[successor]
            new = used[block.index] | behind & ~written[block.index]
            changed |= new != live[block.index]
            live[block.index] = new
    names = np.array(list(numbers), object)
    for block in blocks:
        octets = live[block.index].to_bytes(len(names) // 8 + 1, "little")
        is_live = np.unpackbits(np.frombuffer(octets, np.uint8), bitorder="little")
        block.live = frozenset(names[np.flatnonzero(is_live)].tolist())


def _reads_and_writes(block: BasicBlock) -> tuple[set[str], set[str]]:
    """What a block reads before it writes it, and all that it writes."""
    reads: set[str] = set()
    writes: set[str] = set()
    for instruction in block.instructions:
        reads.update(set(instruction.reads) - writes)
        writes.update(instruction.writes)
    if block.guard:
        reads.update({block.guard.lstrip("!")} - writes)
    return reads, writes
