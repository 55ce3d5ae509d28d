"""Python functions for the basic blocks of a kernel, each made when it first runs."""

from __future__ import annotations

from collections.abc import Callable

from ptx.control_flow import BasicBlock
from ptx.emitter import Emitter
from ptx.faults import UnknownInstruction
from ptx.module import Kernel
from ptx.opcodes import OPCODES


def code_of(kernel: Kernel, block: BasicBlock) -> Callable:
    """A function that runs the block's body for some threads."""
    if block.code is None:
        block.code = compile_block(kernel, block)
    return block.code


def compile_kernel(kernel: Kernel) -> None:
    """All of it at once: an instruction that is not known is found even if it never runs."""
    for block in kernel.blocks:
        code_of(kernel, block)


def compile_block(kernel: Kernel, block: BasicBlock) -> Callable:
    emitter = Emitter(kernel)
    for instruction in block.body:
        if instruction.opcode not in OPCODES:
            where = f"{kernel.name}, line {instruction.line}: {instruction.text}"
            raise UnknownInstruction(f"{instruction.opcode} ({where})")
        OPCODES[instruction.opcode](emitter, instruction)
    following = [kernel.blocks[s].live for s in block.successors if s < len(kernel.blocks)]
    guard = [block.guard.lstrip("!")] if block.guard else []
    of_end = block.end.reads if block.end else []
    return emitter.finish(block, frozenset().union(*following, guard, of_end))
