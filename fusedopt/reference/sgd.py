"""SGD."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusedopt.reference.shared import apply_shared, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"momentum_buffer": True}


@quiet
def sgd(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> tuple[Array, State]:
    """SGD as ``torch.optim.SGD`` defines it; the first momentum buffer is a copy of the gradient.

    Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum in deep
    learning, ICML 2013, in the form that PyTorch documents.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize)
    if momentum != 0:
        if "momentum_buffer" in state:
            momentum_buffer = (
                scalar(momentum) * state["momentum_buffer"] + scalar(1.0 - dampening) * grad
            )
        else:
            momentum_buffer = grad
        state = {"momentum_buffer": momentum_buffer}
        grad = grad + scalar(momentum) * momentum_buffer if nesterov else momentum_buffer
    step = scalar(lr) * grad
    return param - step, state
