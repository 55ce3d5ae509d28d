"""Adam and AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusedopt.optimizers.base import FusedOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


class Adam(FusedOptimizer, torch.optim.Adam):
    r"""Adam with the signature and results of ``torch.optim.Adam``.

    .. code-block:: text

        grad = grad + weight_decay * param;  decoupled: param = param * (1 - lr * weight_decay)
        exp_avg = beta1 * exp_avg + (1 - beta1) * grad
        exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad^2
        amsgrad: max_exp_avg_sq = max(max_exp_avg_sq, exp_avg_sq), which replaces exp_avg_sq below
        denom = sqrt(exp_avg_sq) / sqrt(1 - beta2^step) + eps
        param = param - lr / (1 - beta1^step) * exp_avg / denom

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: learning rate, a number or a tensor of one element, at least 0.
        betas: smoothing constants of the gradient and its square, each in [0, 1).
        eps: added to the root, at least 0.
        weight_decay: weight decay, at least 0: an L2 penalty unless decoupled.
        amsgrad: divide by the largest average so far.
        maximize: follow the gradient instead of its negative.
        capturable: for CUDA graphs: the device counts the steps and reads a learning rate that is a
            tensor there. With a parameter on the CPU ``step`` raises ``AssertionError``.
        decoupled_weight_decay: decay the parameter itself, as AdamW does.
        foreach, fused: accepted; neither selects an implementation, because there is only one.
        differentiable: not supported; True raises ``NotImplementedError``.
        state_bits, stochastic_rounding, master_weights, seed: how parameters and states are stored,
            see :class:`fusedopt.FusedOptimizer`.
        l1, ema_decay: what follows a step, see there.
        max_grad_norm, skip_nonfinite: of the optimizer as a whole, see there.

    State: ``step`` (a 0-dim tensor, on the CPU unless the group is capturable or fused),
    ``exp_avg``, ``exp_avg_sq`` and, with amsgrad, ``max_exp_avg_sq``, of the parameter's shape
    and dtype.

    Source: Kingma, Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, algorithm 1; amsgrad:
    Reddi, Kale, Kumar, On the Convergence of Adam and Beyond, ICLR 2018, algorithm 2. Reference:
    :func:`fusedopt.reference.adam`.
    """

    _rule = "adam"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=decoupled_weight_decay,
        )


class AdamW(Adam, torch.optim.AdamW):
    r"""AdamW with the signature and results of ``torch.optim.AdamW``.

    :class:`Adam` with decoupled weight decay, ``param = param * (1 - lr * weight_decay)`` before
    the update, 1e-2 by default; arguments, state and errors are Adam's.

    Source: Loshchilov, Hutter, Decoupled Weight Decay Regularization, ICLR 2019, algorithm 2, in
    the form of torch, where ``lr`` multiplies the decay, too.
    Reference: :func:`fusedopt.reference.adam` with ``decoupled_weight_decay=True``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float | torch.Tensor, float | torch.Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
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
        # Past Adam, whose option decoupled_weight_decay torch's AdamW sets by itself.
        super(Adam, self).__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
