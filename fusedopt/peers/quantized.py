"""Numbers that another package stores as codes of a table, in blocks that share a scale."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Quantized(NamedTuple):
    """A state in 8 bits.

    Attributes:
        codes: uint8, of the parameter's shape, contiguous.
        table: the float32 value of each code, for a scale of 1.
        scales: one float32 for each block.
        block: elements of a block, counted along the codes; the last one may have fewer.
    """

    codes: torch.Tensor
    table: torch.Tensor
    scales: torch.Tensor
    block: int

    def has_values(self, values: torch.Tensor, ulps: int) -> bool:
        """Whether its table is this one, but for so many units in the last place of any value."""
        if self.table.shape != values.shape:
            return False
        theirs, ours = (t.detach().cpu().view(torch.int32).long() for t in (self.table, values))
        return bool((theirs - ours).abs().max() <= ulps)

    def numbers(self) -> torch.Tensor:
        """The float32 numbers that the codes stand for."""
        codes = self.codes.detach().reshape(-1)
        scales = self.scales.detach().repeat_interleave(self.block)[: codes.numel()]
        return (self.table.detach()[codes.int()] * scales).view(self.codes.shape)


def block_of(elements: int, blocks: int) -> int | None:
    """The power of two whose blocks are this many, the last one perhaps shorter; None for none.

    Of two blocks or more no two powers of two give the same number.
    """
    block = 1
    while -(-elements // block) > blocks:
        block *= 2
    return block if -(-elements // block) == blocks else None
