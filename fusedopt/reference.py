"""The optimizers in plain NumPy: what every kernel of this package is compared with, bit for bit.

Each function performs one step of one rule:

    param, state = adam(param, grad, state, lr=1e-3)

``param`` and ``grad`` are arrays of one float dtype (float32, float64, longdouble) and any shape.
``state`` is a dict as in a torch checkpoint, ``{}`` before the first step; nothing is changed in
place. Scalars are derived in Python's floats, which are IEEE doubles, and rounded once to the
arrays' dtype. The order of operations is part of the definition: only operations that IEEE 754
rounds correctly are used, each in the dtype of the arrays, so any machine that does the same
operations in the same order gets the same bits.

:func:`in_16_bits` wraps a rule for parameters in bfloat16 or float16.

This module needs nothing but NumPy. Default values are those of the optimizer classes.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.floating[Any]]
    State = dict[str, Any]
    Rule = Callable[..., tuple[Array, State]]


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


def _quiet(rule: Rule) -> Rule:
    """Overflow, infinities and NaN are results here, not warnings."""

    @functools.wraps(rule)
    def quiet_rule(*args: Any, **options: Any) -> tuple[Array, State]:
        with np.errstate(all="ignore"):
            return rule(*args, **options)

    return quiet_rule


def _shared(
    param: Array,
    grad: Array,
    lr: float,
    weight_decay: float,
    maximize: bool,
    decoupled_weight_decay: bool = False,
) -> tuple[Array, Array]:
    """What comes ahead of every rule: the sign for ``maximize``, and weight decay.

    The L2 penalty adds to the gradient; decoupled decay shrinks the parameter instead (Loshchilov,
    Hutter, ICLR 2019, algorithm 2).
    """
    scalar = param.dtype.type
    if maximize:
        grad = -grad
    if weight_decay != 0 and decoupled_weight_decay:
        param = scalar(1.0 - lr * weight_decay) * param
    elif weight_decay != 0:
        grad = grad + scalar(weight_decay) * param
    return param, grad


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
    if momentum != 0:
        if "momentum_buffer" in state:
            momentum_buffer = (
                scalar(momentum) * state["momentum_buffer"] + scalar(1.0 - dampening) * grad
            )
        else:
            momentum_buffer = grad
        state = {"momentum_buffer": momentum_buffer}
        grad = grad + scalar(momentum) * momentum_buffer if nesterov else momentum_buffer
    return param - scalar(lr) * grad, state


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
    velocity = state.get("velocity", np.zeros_like(param))
    velocity = scalar(momentum) * velocity - scalar(lr) * grad
    return param + velocity, {"velocity": velocity}


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
    velocity = state.get("velocity", np.zeros_like(param))
    impulse = scalar(lr) * grad
    velocity = scalar(momentum) * velocity - impulse
    return param + (scalar(momentum) * velocity - impulse), {"velocity": velocity}


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
    step = state.get("step", 0) + 1
    state_sum = state.get("sum", np.full_like(param, initial_accumulator_value))
    state_sum = state_sum + grad * grad
    denom = np.sqrt(state_sum) + scalar(eps)
    decayed_lr = lr / (1.0 + (step - 1) * lr_decay)
    param = param - scalar(decayed_lr) * grad / denom
    return param, {"step": step, "sum": state_sum}


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
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
        param = param - scalar(lr) * momentum_buffer
    else:
        param = param - scalar(lr) * grad / denom
    return param, new_state


@_quiet
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
    param, grad = _shared(param, grad, lr, weight_decay, maximize)
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
    return param - scalar(lr) * delta, new_state


@_quiet
def adam(
    param: Array,
    grad: Array,
    state: State,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
) -> tuple[Array, State]:
    """Adam, and with ``decoupled_weight_decay`` AdamW.

    Kingma, Ba: Adam: A Method for Stochastic Optimization, ICLR 2015, algorithm 1; amsgrad: Reddi,
    Kale, Kumar: On the Convergence of Adam and Beyond, ICLR 2018, algorithm 2, with the maximum
    taken ahead of bias correction as in torch.optim.Adam; AdamW: Loshchilov, Hutter: Decoupled
    Weight Decay Regularization, ICLR 2019, algorithm 2.
    """
    scalar = param.dtype.type
    param, grad = _shared(param, grad, lr, weight_decay, maximize, decoupled_weight_decay)
    beta1, beta2 = betas
    step = state.get("step", 0) + 1
    bias_correction1 = 1.0 - power(beta1, step)
    bias_correction2 = 1.0 - power(beta2, step)
    step_size = lr / bias_correction1

    zeros = np.zeros_like(param)
    exp_avg = lerp(state.get("exp_avg", zeros), grad, 1.0 - beta1)
    exp_avg_sq = state.get("exp_avg_sq", zeros)
    exp_avg_sq = scalar(beta2) * exp_avg_sq + scalar(1.0 - beta2) * grad * grad
    new_state = {"step": step, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    second_moment = exp_avg_sq
    if amsgrad:
        second_moment = np.maximum(state.get("max_exp_avg_sq", zeros), exp_avg_sq)
        new_state["max_exp_avg_sq"] = second_moment
    rsqrt_bias_correction2 = 1.0 / math.sqrt(bias_correction2)
    denom = np.sqrt(second_moment) * scalar(rsqrt_bias_correction2) + scalar(eps)
    param = param - scalar(step_size) * exp_avg / denom
    return param, new_state


def _as_float32(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def round_bfloat16(x: Array) -> Array:
    """The bfloat16 nearest to each float32, ties to even, as a float32 array.

    Every NaN becomes that of the bits 0x7fff.
    """
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return np.where(np.isnan(x), _as_float32(0x7FFF << 16), rounded.view(np.float32))


def round_float16(x: Array) -> Array:
    """The float16 nearest to each float32, ties to even, as a float32 array.

    Every NaN becomes that of the bits 0x7fff.
    """
    with np.errstate(all="ignore"):
        rounded = x.astype(np.float16).astype(np.float32)
    return np.where(np.isnan(x), _as_float32(0x7FFFE000), rounded)


def unscale(grad: Array, scale: float) -> Array:
    """The gradient of the loss itself, from that of the loss times ``scale``.

    What a step does first for ``torch.amp.GradScaler``: in float32 for gradients in 16 bits, whose
    quotient is used as it is and rounded when it is stored back. Micikevicius et al., Mixed
    Precision Training, ICLR 2018, section 3.2.
    """
    with np.errstate(all="ignore"):
        return grad / grad.dtype.type(scale)


def in_16_bits(rule: Rule, round_to_storage: Callable[[Array], Array]) -> Rule:
    """``rule`` for parameters and states that are stored in 16 bits.

    All arrays are float32 and hold values of the 16-bit type. The step is done in float32; the
    parameter and every state are rounded when they are stored, once.

    Args:
        rule: one of the functions above.
        round_to_storage: :func:`round_bfloat16` or :func:`round_float16`.
    """

    @functools.wraps(rule)
    def rounded_rule(
        param: Array, grad: Array, state: State, **options: Any
    ) -> tuple[Array, State]:
        if "initial_accumulator_value" in options:
            # A state that has been stored before the first step.
            value = np.full(1, options["initial_accumulator_value"], np.float32)
            options["initial_accumulator_value"] = float(round_to_storage(value)[0])
        param, state = rule(param, grad, state, **options)
        stored = {
            # Arithmetic on arrays of no dimensions gives NumPy's scalars; a step count is an int.
            name: value if isinstance(value, int) else round_to_storage(value)
            for name, value in state.items()
        }
        return round_to_storage(param), stored

    return rounded_rule
