"""Adadelta."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"square_avg": False, "acc_delta": False}


@quiet
def adadelta(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    """Adadelta, with epsilon inside the roots.

    Zeiler: ADADELTA: An Adaptive Learning Rate Method, 2012, algorithm 1.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    square_avg = state.get("square_avg", np.zeros_like(param))
    acc_delta = state.get("acc_delta", np.zeros_like(param))
    square_avg = scalar(rho) * square_avg + scalar(1.0 - rho) * grad * grad
    delta = np.sqrt(acc_delta + scalar(eps)) / np.sqrt(square_avg + scalar(eps)) * grad
    acc_delta = scalar(rho) * acc_delta + scalar(1.0 - rho) * delta * delta
    new_state = {
        "step": state.get("step", 0) + 1,
        "square_avg": square_avg,
        "acc_delta": acc_delta,
    }
    step = scalar(lr) * delta
    return param - step, new_state
