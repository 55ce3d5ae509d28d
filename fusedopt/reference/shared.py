"""What rules share: the sign and weight decay that come before each, and arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
State = dict[str, Any]
Rule = Callable[..., tuple[Array, State]]


def quiet(rule: Rule) -> Rule:
    """Overflow, infinities and NaN are results here, not warnings."""

    @functools.wraps(rule)
    def quiet_rule(*args: Any, **options: Any) -> tuple[Array, State]:
        with np.errstate(all="ignore"):
            return rule(*args, **options)

    return quiet_rule


def apply_shared(
    param: Array,
    grad: Array,
    lr: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool = False,
) -> tuple[Array, Array]:
    """What comes before every rule: the sign for ``maximize``, and weight decay.

    The L2 penalty adds to the gradient; decoupled decay shrinks the parameter instead (Loshchilov,
    Hutter, ICLR 2019, algorithm 2, with the decay multiplied by the learning rate as in torch).
    """
    scalar = param.dtype.type
    if maximize:
        grad = -grad
    if weight_decay != 0 and decoupled_weight_decay:
        param = scalar(1.0 - lr * weight_decay) * param
    elif weight_decay != 0:
        grad = grad + scalar(weight_decay) * param
    return param, grad


def unscale(grad: Array, scale: float) -> Array:
    """The gradient of the loss itself, from that of the loss times ``scale``.

    What a step does first for ``torch.amp.GradScaler``: in float32 for gradients in 16 bits, whose
    quotient is used as it is and rounded when it is stored back. Micikevicius et al., Mixed
    Precision Training, ICLR 2018, section 3.2.
    """
    with np.errstate(all="ignore"):
        return grad / grad.dtype.type(scale)


def power(base: float, exponent: int) -> float:
    """``base**exponent`` by repeated squaring, which is the same sequence of roundings anywhere."""
    result = 1.0
    while exponent > 0:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def lerp(start: Array, end: Array, weight: float) -> Array:
    """``start + weight * (end - start)``, computed from the nearer end as ``torch.lerp`` does."""
    w = start.dtype.type(weight)
    one = start.dtype.type(1)
    if w < 0.5:
        return start + w * (end - start)
    return end - (end - start) * (one - w)
