"""The heavy ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"velocity": True}


@quiet
def momentum(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    """The heavy ball, with the learning rate inside the velocity.

    Polyak: Some methods of speeding up the convergence of iteration methods, 1964, equation 9;
    Sutskever et al., ICML 2013, equations 1 and 2.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    velocity = state.get("velocity", np.zeros_like(param))
    velocity = scalar(momentum) * velocity - scalar(lr) * grad
    step = -velocity
    return param - step, {"velocity": velocity}
