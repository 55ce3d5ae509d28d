"""One instruction as text, taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

# An operand is a vector in braces, an address in brackets, or a word.
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
REGISTER = re.compile(r"%(?!tid\b|ctaid\b|ntid\b|nctaid\b)\w+")
WITHOUT_RESULT = frozenset(
    {"st", "red", "bra", "ret", "exit", "bar", "barrier", "meet", "membar", "fence"}
)


@dataclass(frozen=True)
class Instruction:
    kernel: str
    line: int
    text: str

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        guard, rest = "", self.text
        if rest.startswith("@"):
            guard, rest = rest.split(maxsplit=1)
        opcode, _, operands = rest.partition(" ")
        return guard[1:], opcode, operands

    @property
    def guard(self) -> str:
        """The predicate's register, after a ``!`` where it has to be false; or nothing."""
        return self._parts[0]

    @property
    def opcode(self) -> str:
        return self._parts[1]

    @property
    def kind(self) -> str:
        return self.opcode.partition(".")[0]

    @cached_property
    def operands(self) -> list[str]:
        return OPERAND.findall(self._parts[2])

    @cached_property
    def writes(self) -> list[str]:
        if self.kind in WITHOUT_RESULT:
            return []
        return REGISTER.findall(self.operands[0])

    @cached_property
    def reads(self) -> list[str]:
        sources = self.operands if self.kind in WITHOUT_RESULT else self.operands[1:]
        return REGISTER.findall(" ".join([*sources, self.guard]))
