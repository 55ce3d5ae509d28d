"""Python for the instructions of one basic block: a value is a NumPy array over the threads."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ptx import numbers
from ptx.control_flow import BasicBlock
from ptx.faults import UnknownInstruction
from ptx.instruction import Instruction
from ptx.module import Kernel
from ptx.numbers import TYPES, UNSIGNED

# Where the constant bank begins; no address of a registered allocation is this small.
PARAMETER_BASE = 0x160
SPECIAL = ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x")

Emit = Callable[["Emitter", Instruction], None]


class Emitter:
    """Collects the lines of a function ``run(registers, machine, thread)``.

    A register lives between basic blocks as an array of the type that it was first seen with; other
    types of the same width see it through a view. Within a block it is a local variable for each.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.homes = kernel, kernel.homes
        self.lines: list[str] = []
        self.constants: dict[str, object] = {"np": np, "numbers": numbers}
        self._locals: dict[str, dict[np.dtype, str]] = {}
        self._written: dict[str, np.dtype] = {}
        # Results of f32 arithmetic whose NaN may not be the canonical one yet. Where they only go
        # into more such arithmetic it makes no difference.
        self._raw: set[str] = set()
        self._count = 0

    def constant(self, value: object) -> str:
        name = f"k{len(self.constants)}"
        self.constants[name] = value
        return name

    def local(self, expression: str) -> str:
        self._count += 1
        name = f"v{self._count}"
        self.lines.append(f"{name} = {expression}")
        return name

    # ---- operands ----
    def width(self, register: str) -> int:
        declared = self.kernel.register_type(register)
        return TYPES[declared].itemsize

    def read(self, operand: str, kind: str, *, relaxed: bool = False, raw: bool = False) -> str:
        """The operand as a type. Relaxed: of a register that is wider, its low bits."""
        dtype = TYPES[kind]
        if operand in SPECIAL and dtype == UNSIGNED[4]:
            return self.local(f"machine.special({operand!r}, thread)")
        if not operand.startswith("%"):
            return self.constant(numbers.immediate(operand, dtype))
        if operand in self._raw and not raw:
            self._settle(operand)
        if self.width(operand) > dtype.itemsize and relaxed:
            whole = self._view(operand, UNSIGNED[self.width(operand)])
            low = self.local(f"{whole}.astype({self.constant(UNSIGNED[dtype.itemsize])})")
            return low if dtype.kind == "u" else f"{low}.view({self.constant(dtype)})"
        self._check(operand, dtype, kind)
        return self._view(operand, dtype)

    def array(self, operand: str, kind: str) -> str:
        """As ``read``, but an array even of a constant."""
        value = self.read(operand, kind)
        return value if operand.startswith("%") else self.local(f"np.full(thread.size, {value})")

    def _check(self, register: str, dtype: np.dtype, kind: str) -> None:
        is_predicate = self.kernel.register_type(register) == "pred"
        if self.width(register) != dtype.itemsize or is_predicate != (kind == "pred"):
            raise UnknownInstruction(f"{self.kernel.name}: {register} as {kind}")

    def _view(self, register: str, dtype: np.dtype) -> str:
        known = self._locals.setdefault(register, {})
        if not known:
            default = TYPES["pred"] if dtype.kind == "b" else UNSIGNED[dtype.itemsize]
            home = self.homes.setdefault(register, default)
            known[home] = self.local(f"registers[{register!r}]")
        if dtype not in known:
            known[dtype] = self.local(f"{next(iter(known.values()))}.view({self.constant(dtype)})")
        return known[dtype]

    def _settle(self, register: str) -> None:
        (raw,) = self._locals[register].values()
        self._raw.discard(register)
        self._locals[register] = {TYPES["f32"]: self.local(f"numbers.canonical({raw})")}

    def define(self, register: str, expression: str, kind: str, *, raw: bool = False) -> None:
        """The register's new value. A wider register is filled with zeros, or with the sign."""
        dtype = TYPES[kind]
        width = self.width(register)
        if width > dtype.itemsize and dtype.kind in "ui":
            wide = np.dtype(f"{dtype.kind}{width}")
            dtype = UNSIGNED[width]
            expression = (
                f"({expression}).astype({self.constant(wide)}).view({self.constant(dtype)})"
            )
        else:
            self._check(register, dtype, kind)
        self._raw.discard(register)
        if raw:
            self._raw.add(register)
        self._locals[register] = {dtype: self.local(expression)}
        self._written[register] = self.homes.setdefault(register, dtype)

    # ---- addresses ----
    def address(self, operand: str) -> str:
        """Of the form [register], [register+constant], [variable] or [variable+constant]."""
        base, _, offset = re.sub(r"\s", "", operand[1:-1]).partition("+")
        constant = int(offset or 0)
        if not base.startswith("%"):
            value = np.int64(self.symbol(base) + constant)
            return self.local(f"np.full(thread.size, {self.constant(value)})")
        kind = f"u{8 * self.width(base)}"
        value = self.read(base, kind)
        if kind == "u32":
            value = f"{value}.astype(np.uint64)"
        if constant:
            value = f"({value} + {self.constant(np.uint64(constant % 2**64))})"
        return f"{value}.view(np.int64)"

    def symbol(self, name: str) -> int:
        """The address of a variable in its own space."""
        if name in self.kernel.parameters:
            return PARAMETER_BASE + self.kernel.parameters[name].offset
        if name in self.kernel.shared:
            return self.kernel.shared[name].offset
        raise UnknownInstruction(f"{self.kernel.name}: {name}")

    # ---- the whole ----
    def finish(self, block: BasicBlock, live_out: frozenset[str]) -> Callable:
        for register, home in self._written.items():
            if register in live_out:
                if register in self._raw:
                    self._settle(register)
                self.lines.append(f"registers[{register!r}] = {self._view(register, home)}")
        body = "".join(f"    {line}\n" for line in self.lines) or "    pass\n"
        source = "def run(registers, machine, thread):\n" + body
        exec(compile(source, f"{self.kernel.name}, block {block.index}", "exec"), self.constants)
        return self.constants["run"]
