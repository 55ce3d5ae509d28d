"""Adadelta."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from fusedopt.optimizers.base import FusedOptimizer, refuse_fused_with_foreach


class Adadelta(FusedOptimizer, torch.optim.Adadelta):
    r"""Adadelta with the signature and results of ``torch.optim.Adadelta``.

    .. code-block:: text

        grad = grad + weight_decay * param
        square_avg = rho * square_avg + (1 - rho) * grad^2
        delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
        acc_delta = rho * acc_delta + (1 - rho) * delta^2
        param = param - lr * delta

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: factor of the update, a number or a tensor of one element, at least 0.
        rho: smoothing constant, from 0 to 1.
        eps: added inside the roots, at least 0.
        weight_decay: factor of the L2 penalty, at least 0.
        capturable: for CUDA graphs: the device counts the steps and reads a learning rate that is a
            tensor there. With a parameter on the CPU ``step`` raises ``AssertionError``.
        maximize: follow the gradient instead of its negative.
        foreach, fused: accepted; neither selects an implementation, because there is only one.
        differentiable: not supported; True raises ``NotImplementedError``.
        state_bits, stochastic_rounding, master_weights, seed: how parameters and states are stored,
            see :class:`fusedopt.FusedOptimizer`.
        l1, ema_decay: what follows a step, see there.
        max_grad_norm, skip_nonfinite: of the optimizer as a whole, see there.

    State: ``step`` (a 0-dim tensor, on the CPU unless the group is capturable or fused),
    ``square_avg`` and ``acc_delta``, of the parameter's shape and dtype.

    Source: Zeiler, ADADELTA: An Adaptive Learning Rate Method, 2012, algorithm 1. Reference:
    :func:`fusedopt.reference.adadelta`.
    """

    _rule = "adadelta"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_bits: int | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int = 0,
        l1: float = 0.0,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        self._store(state_bits, stochastic_rounding, master_weights, seed)
        self._finish(l1, ema_decay)
        self._clip(max_grad_norm, skip_nonfinite)
        super().__init__(
            params,
            lr,
            rho,
            eps,
            weight_decay,
            foreach,
            capturable=capturable,
            maximize=maximize,
            differentiable=differentiable,
        )
        refuse_fused_with_foreach(fused, foreach)
        if fused is not None:
            self._set_option("fused", fused)
