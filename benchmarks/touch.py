"""The floor: a step that moves the memory and computes next to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusedopt import FusedOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


class Touch(FusedOptimizer):
    """Adds the gradient to the parameter and to each state: not an optimizer.

    It reads and writes the memory that a rule with as many states reads and writes, by the same
    native call, so no rule can be faster.

    Args:
        params: parameters or dicts defining groups.
        lr: read and not used.
        states: number of states, from 0 to 3.

    State: the first ``states`` of ``first``, ``second`` and ``third``, of the parameter's shape and
    dtype.
    """

    _rule = "touch"

    def __init__(self, params: ParamsT, lr: float = 0.0, states: int = 0) -> None:
        if states not in range(4):
            raise ValueError(f"Invalid number of states: {states}")
        defaults = {"lr": lr, "weight_decay": 0.0, "maximize": False, "states": states}
        super().__init__(params, defaults)
