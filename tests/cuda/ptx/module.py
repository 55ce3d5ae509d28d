"""The kernels of a PTX text, with what each declares."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ptx.control_flow import BasicBlock, basic_blocks
from ptx.faults import UnknownInstruction
from ptx.instruction import Instruction
from ptx.numbers import TYPES

ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{")
VARIABLE = re.compile(
    r"\.(?:param|shared)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?"
)
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+)(?:<\d+>)?\s*;")
# A register of one statement: { .reg .b16 low; mov.b32 {low, %rs1}, %r1; }
SCOPE = re.compile(r"\{\s*\.reg\s+\.(\w+)\s+(\w+);([^;]*;)\s*\}")
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
DIRECTIVES = frozenset({".reg", ".shared", ".pragma", ".loc", ".file"})


@dataclass(frozen=True)
class Variable:
    """A parameter or a variable in shared memory."""

    name: str
    offset: int
    size: int
    align: int


@dataclass(frozen=True)
class Coverage:
    """What of a kernel all launches together have executed."""

    blocks_run: int
    blocks: int
    unexecuted: list[Instruction]


def variables(text: str, gap: int = 0) -> dict[str, Variable]:
    """All that a text declares, laid out one behind the other, each aligned as it says."""
    result: dict[str, Variable] = {}
    end = 0
    for align, kind, name, count in VARIABLE.findall(text):
        itemsize = TYPES[kind].itemsize
        alignment = int(align or itemsize)
        offset = math.ceil(end / alignment) * alignment
        result[name] = Variable(name, offset, itemsize * int(count or 1), alignment)
        end = offset + result[name].size + gap
    return result


class Kernel:
    # So far apart are the variables in shared memory that no access reaches from one to the next.
    SHARED_GAP = 16

    def __init__(self, entry: re.Match, text: str, body: str, line: int) -> None:
        self.name, self.text, self._line = entry[1], text, line
        self._body = SCOPE.sub(without_scope, body)
        self.parameters = variables(entry[2])
        threads = re.search(r"\.(?:max|req)ntid\s+([\d, ]+)", entry[3])
        self.required_threads = math.prod(map(int, threads[1].split(","))) if threads else None
        # The type in which a register lives between basic blocks, once it is known.
        self.homes: dict[str, np.dtype] = {}

    @property
    def parameter_size(self) -> int:
        return max((v.offset + v.size for v in self.parameters.values()), default=0)

    @property
    def parameter_align(self) -> int:
        return max((v.align for v in self.parameters.values()), default=1)

    @cached_property
    def shared(self) -> dict[str, Variable]:
        return variables(self._body, self.SHARED_GAP)

    @cached_property
    def registers(self) -> dict[str, str]:
        """The declared type of each register's name, without its number."""
        return {name: kind for kind, name in REGISTERS.findall(self._body)}

    def register_type(self, register: str) -> str:
        prefix = register.rstrip("0123456789")
        if register not in self.registers and prefix not in self.registers:
            raise UnknownInstruction(f"{self.name}: {register} is not declared")
        return self.registers.get(register) or self.registers[prefix]

    @cached_property
    def blocks(self) -> list[BasicBlock]:
        return basic_blocks(self.statements())

    def statements(self) -> list[str | Instruction]:
        """Labels, with their colon, and instructions."""
        result: list[str | Instruction] = []
        for number, line in enumerate(self._body.split("\n"), self._line):
            for statement in line.split(";"):
                text = " ".join(statement.split())
                label, colon, rest = text.partition(":")
                if colon and re.fullmatch(r"[\w$]+", label):
                    result.append(label + ":")
                    text = rest.strip()
                if text.startswith("."):
                    self._check_directive(text, number)
                elif text:
                    result.append(Instruction(self.name, number, text))
        return result

    def _check_directive(self, text: str, line: int) -> None:
        if text.split()[0] not in DIRECTIVES:
            raise UnknownInstruction(f"{self.name}, line {line}: {text}")

    def coverage(self) -> Coverage:
        left = [b for b in self.blocks if b.runs == 0]
        unexecuted = [i for b in left for i in b.instructions]
        return Coverage(len(self.blocks) - len(left), len(self.blocks), unexecuted)


class Module:
    def __init__(self, text: str) -> None:
        text = COMMENT.sub(lambda comment: "\n" * comment[0].count("\n"), text)
        self.kernels: dict[str, Kernel] = {}
        for entry in ENTRY.finditer(text):
            end = closing_brace(text, entry.end())
            line = text.count("\n", 0, entry.end()) + 1
            whole, body = text[entry.start() : end + 1], text[entry.end() : end]
            self.kernels[entry[1]] = Kernel(entry, whole, body, line)


def without_scope(scope: re.Match) -> str:
    """The statement with its register declared for the kernel, by a name of its own."""
    name = f"%{scope[2]}_at_{scope.start()}"
    statement = re.sub(rf"\b{scope[2]}\b", name, scope[3])
    line_ends = "\n" * (scope[0].count("\n") - statement.count("\n"))
    return f".reg .{scope[1]} {name};{statement}{line_ends}"


def closing_brace(text: str, begin: int) -> int:
    """Where the brace closes that is open ahead of a place."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise ValueError("PTX: a brace is not closed")
