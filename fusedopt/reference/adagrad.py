"""Adagrad."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"sum": False}


@quiet
def adagrad(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
    maximize: bool = False,
) -> tuple[Array, State]:
    """AdaGrad with a diagonal matrix.

    Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization, JMLR 12, 2011, figure 1; the decay of the learning rate as in torch.optim.Adagrad.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    count = state.get("step", 0) + 1
    state_sum = state.get("sum", np.full_like(param, initial_accumulator_value))
    state_sum = state_sum + grad * grad
    denom = np.sqrt(state_sum) + scalar(eps)
    decayed_lr = lr / (1.0 + (count - 1) * lr_decay)
    step = scalar(decayed_lr) * grad / denom
    return param - step, {"step": count, "sum": state_sum}
