"""The rule of the benchmark's floor, entered as the optimizers are."""

from __future__ import annotations

import numpy as np

from fusedopt import reference
from fusedopt.checking.rows import Row
from fusedopt.optimizers.base import FusedOptimizer

STATES = ("first", "second", "third")
# For runs that store them in fewer bytes.
reference.STATES["touch"] = dict.fromkeys(STATES, True)


class Touch(FusedOptimizer):
    """Adds the gradient times the rate to the parameter and to as many states as it is told."""

    _rule = "touch"

    def __init__(self, params, lr=0.5, states=0, *, maximize=False, capturable=False):
        defaults = {"lr": lr, "weight_decay": 0.0, "maximize": maximize, "states": states}
        super().__init__(params, {**defaults, "capturable": capturable})


def touch(param, grad, state, *, lr, states):
    """The rule in NumPy, without what all rules share."""
    with np.errstate(all="ignore"):
        added = grad * param.dtype.type(lr)
        moved = {name: state.get(name, np.zeros_like(param)) + added for name in STATES[:states]}
        return param + added, moved


class TouchRow(Row):
    """Its reference is no part of the package."""

    @property
    def reference(self):
        return touch


TOUCH = TouchRow(Touch, None, tuple({"lr": 0.25, "states": states} for states in range(4)))
