"""What stops a launch: the kernel did what PTX leaves undefined, or the interpreter lacks it."""

from __future__ import annotations

from dataclasses import dataclass


class UnknownInstruction(NotImplementedError):  # noqa: N818
    """An instruction or a directive that the interpreter does not have."""


@dataclass(eq=False)
class Fault(Exception):  # noqa: N818
    """What a GPU, or a checker on one, would refuse, and where."""

    reason: str
    kernel: str = ""
    line: int = 0  # of the PTX
    instruction: str = ""
    block: int | None = None
    thread: int | None = None
    address: int | None = None
    region: str = ""

    def __str__(self) -> str:
        place = [f"kernel {self.kernel}", f"line {self.line}: {self.instruction}"]
        if self.block is not None:
            place.append(f"block {self.block}, thread {self.thread}")
        if self.address is not None:
            place.append(f"address {self.address:#x}")
        if self.region:
            place.append(self.region)
        return "; ".join([self.reason, *place])
