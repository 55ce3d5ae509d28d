"""Adam and AdamW."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fusedopt.reference.shared import apply_shared, lerp, power, quiet

if TYPE_CHECKING:
    from fusedopt.reference.shared import Array, State

# Whether the numbers of a state may be negative.
STATES = {"exp_avg": True, "exp_avg_sq": False, "max_exp_avg_sq": False}


@quiet
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
    taken before bias correction as in torch.optim.Adam; AdamW: Loshchilov, Hutter: Decoupled
    Weight Decay Regularization, ICLR 2019, algorithm 2, with the decay multiplied by the learning
    rate as in torch.optim.AdamW.
    """
    scalar = param.dtype.type
    param, grad = apply_shared(param, grad, lr, weight_decay, maximize, decoupled_weight_decay)
    beta1, beta2 = betas
    count = state.get("step", 0) + 1
    bias_correction1 = 1.0 - power(beta1, count)
    bias_correction2 = 1.0 - power(beta2, count)
    step_size = lr / bias_correction1

    zeros = np.zeros_like(param)
    exp_avg = lerp(state.get("exp_avg", zeros), grad, 1.0 - beta1)
    exp_avg_sq = state.get("exp_avg_sq", zeros)
    exp_avg_sq = scalar(beta2) * exp_avg_sq + scalar(1.0 - beta2) * grad * grad
    new_state = {"step": count, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    second_moment = exp_avg_sq
    if amsgrad:
        second_moment = np.maximum(state.get("max_exp_avg_sq", zeros), exp_avg_sq)
        new_state["max_exp_avg_sq"] = second_moment
    rsqrt_bias_correction2 = 1.0 / math.sqrt(bias_correction2)
    denom = np.sqrt(second_moment) * scalar(rsqrt_bias_correction2) + scalar(eps)
    step = scalar(step_size) * exp_avg / denom
    return param - step, new_state
