"""Nesterov's accelerated gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"velocity": True}


@quiet
def nesterov(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> tuple[Array, State]:
    """Nesterov's accelerated gradient.

    ``param`` is the lookahead point ``x + momentum * velocity``, where the gradient is taken. With
    ``velocity' = momentum * velocity - lr * grad`` and ``x' = x + velocity'`` the next one is
    ``x' + momentum * velocity' = param + (momentum * velocity' - lr * grad)``.

    Nesterov: A method of solving a convex programming problem with convergence rate O(1/k^2), 1983;
    Sutskever et al., ICML 2013, equations 3 and 4.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    velocity = state.get("velocity", np.zeros_like(param))
    impulse = scalar(lr) * grad
    velocity = scalar(momentum) * velocity - impulse
    # Not impulse - momentum * velocity: where both are equal, that zero would have the other sign,
    # and a parameter of -0 would stay -0, which the sum above makes +0.
    step = -(scalar(momentum) * velocity - impulse)
    return param - step, {"velocity": velocity}
