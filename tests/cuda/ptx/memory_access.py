"""Loads, stores and atomics: the instructions that go through the checked memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from ptx.emitter import Emit, Emitter
from ptx.instruction import Instruction
from ptx.numbers import TYPES

KINDS = [f"{k}{bits}" for k, bits in product("bus", (8, 16, 32, 64))] + ["f32", "f64"]
# What serves each state space. Generic addresses are those of the global space.
SPACES = {
    "": "machine.global_memory",
    ".global": "machine.global_memory",
    ".shared": "machine.shared_memory",
    ".param": "machine.parameters",
}


@dataclass(frozen=True)
class Access:
    """What an instruction does to memory."""

    instruction: Instruction
    size: int  # of an element in bytes
    count: int = 1  # of elements that lie side by side
    is_read_only: bool = False  # a load through the path for what nobody writes
    acquires: bool = False
    releases: bool = False
    returns: bool = True  # an atomic that tells what was there before

    @property
    def width(self) -> int:
        return self.size * self.count


def access_opcodes() -> dict[str, Emit]:
    """PTX allows vectors of at most 16 bytes."""
    table: dict[str, Emit] = {}
    for (space, owner), count, kind in product(SPACES.items(), (1, 2, 4), KINDS):
        if count * TYPES[kind].itemsize > 16:
            continue
        vector = f".v{count}" if count > 1 else ""
        table[f"ld{space}{vector}.{kind}"] = load(owner, count, kind)
        if space == ".global":
            table[f"ld.global.nc{vector}.{kind}"] = load(owner, count, kind, is_read_only=True)
        if space != ".param":
            table[f"st{space}{vector}.{kind}"] = store(owner, count, kind)
    orders = ("", ".relaxed.gpu", ".acquire.gpu", ".release.gpu", ".acq_rel.gpu")
    for space, order, kind in product((".global", ".shared"), orders, ("u32", "s32", "u64")):
        if order == "" or space == ".global":
            table[f"atom{order}{space}.add.{kind}"] = atomic_add(SPACES[space], order, kind)
    for space, kind in product((".global", ".shared"), ("u32", "s32", "u64")):
        table[f"red{space}.add.{kind}"] = atomic_add(SPACES[space], "", kind)
    return table


def elements(operand: str) -> list[str]:
    return operand.strip("{} ").replace(" ", "").split(",")


def load(owner: str, count: int, kind: str, is_read_only: bool = False) -> Emit:
    size = TYPES[kind].itemsize

    def emit(emitter: Emitter, instruction: Instruction) -> None:
        target, source = instruction.operands
        access = emitter.constant(Access(instruction, size, count, is_read_only))
        address = emitter.address(source)
        values = emitter.local(f"{owner}.load({access}, {address}, thread)")
        for n, register in enumerate(elements(target)):
            view = "" if TYPES[kind].kind == "u" else f".view({emitter.constant(TYPES[kind])})"
            emitter.define(register, f"{values}[{n}]{view}", kind)

    return emit


def store(owner: str, count: int, kind: str) -> Emit:
    size = TYPES[kind].itemsize

    def emit(emitter: Emitter, instruction: Instruction) -> None:
        target, source = instruction.operands
        access = emitter.constant(Access(instruction, size, count))
        address = emitter.address(target)
        values = [emitter.read(r, f"b{8 * size}", relaxed=True) for r in elements(source)]
        emitter.lines.append(f"{owner}.store({access}, {address}, ({', '.join(values)},), thread)")

    return emit


def atomic_add(owner: str, order: str, kind: str) -> Emit:
    """red is an atom that leaves out where the old value goes."""
    bits = f"u{kind[1:]}"

    def emit(emitter: Emitter, instruction: Instruction) -> None:
        *target, place, operand = instruction.operands
        access = Access(
            instruction,
            TYPES[kind].itemsize,
            acquires=order in (".acquire.gpu", ".acq_rel.gpu"),
            releases=order in (".release.gpu", ".acq_rel.gpu"),
            returns=bool(target),
        )
        address = emitter.address(place)
        value = emitter.array(operand, bits)
        arguments = f"{emitter.constant(access)}, {address}, {value}, thread"
        old = emitter.local(f"{owner}.atomic_add({arguments})")
        if target:
            emitter.define(target[0], old, bits)

    return emit
