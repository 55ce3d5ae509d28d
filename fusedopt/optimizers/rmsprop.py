"""RMSprop."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT

from fusedopt.optimizers.base import FusedOptimizer, refuse_fused_with_foreach


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    r"""RMSprop with the signature and results of ``torch.optim.RMSprop``.

    .. code-block:: text

        grad = grad + weight_decay * param
        square_avg = alpha * square_avg + (1 - alpha) * grad^2
        centered: grad_avg = alpha * grad_avg + (1 - alpha) * grad
                  denom = sqrt(square_avg - grad_avg^2) + eps
        else:     denom = sqrt(square_avg) + eps
        momentum: momentum_buffer = momentum * momentum_buffer + grad / denom
                  param = param - lr * momentum_buffer
        else:     param = param - lr * grad / denom

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: learning rate, a number or a tensor of one element, at least 0.
        alpha: smoothing constant, at least 0.
        eps: added to the root, at least 0.
        weight_decay: factor of the L2 penalty, at least 0.
        momentum: factor of the buffer, at least 0; 0 keeps none.
        centered: normalise by an estimate of the variance. As in torch, the estimate can round to
            less than 0 where gradients hardly change, which gives NaN.
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
    ``square_avg`` and, with the options that need them, ``momentum_buffer`` and ``grad_avg``,
    of the parameter's shape and dtype.

    Source: Hinton, Srivastava, Swersky, Neural Networks for Machine Learning, lecture 6e, 2012;
    centered: Graves, Generating Sequences With Recurrent Neural Networks, 2013, equations 38 to 45.
    Reference: :func:`fusedopt.reference.rmsprop`.
    """

    _rule = "rmsprop"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
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
            alpha,
            eps,
            weight_decay,
            momentum,
            centered,
            capturable,
            foreach,
            maximize,
            differentiable,
        )
        refuse_fused_with_foreach(fused, foreach)
        if fused is not None:
            self._set_option("fused", fused)
