"""RMSprop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, lerp, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"square_avg": False, "momentum_buffer": True, "grad_avg": True}


@quiet
def rmsprop(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    """RMSprop, with epsilon outside the root as in torch.optim.RMSprop.

    Hinton, Srivastava, Swersky: Neural Networks for Machine Learning, lecture 6e, 2012; centered:
    Graves: Generating Sequences With Recurrent Neural Networks, 2013, equations 38 to 45.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    zeros = np.zeros_like(param)
    square_avg = state.get("square_avg", zeros)
    square_avg = scalar(alpha) * square_avg + scalar(1.0 - alpha) * grad * grad
    new_state = {"step": state.get("step", 0) + 1, "square_avg": square_avg}
    variance = square_avg
    if centered:
        grad_avg = lerp(state.get("grad_avg", zeros), grad, 1.0 - alpha)
        new_state["grad_avg"] = grad_avg
        variance = square_avg - grad_avg * grad_avg
    denom = np.sqrt(variance) + scalar(eps)
    if momentum > 0:
        momentum_buffer = scalar(momentum) * state.get("momentum_buffer", zeros) + grad / denom
        new_state["momentum_buffer"] = momentum_buffer
        step = scalar(lr) * momentum_buffer
    else:
        step = scalar(lr) * grad / denom
    return param - step, new_state
