"""The heavy ball."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusedopt.optimizers.base import FusedOptimizer, refuse_fused_with_foreach

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


class Momentum(FusedOptimizer):
    r"""The heavy ball: momentum with the learning rate inside the velocity.

    .. code-block:: text

        grad = grad + weight_decay * param
        velocity = momentum * velocity - lr * grad
        param = param + velocity

    At a constant learning rate this is ``SGD(momentum=...)``: its ``momentum_buffer`` is the
    velocity divided by ``-lr``. The two differ when the learning rate changes. Here the velocity
    keeps the speed it has gathered and only new gradients feel the new rate; in
    :class:`fusedopt.SGD`, as in ``torch.optim.SGD``, the rate multiplies the whole buffer, so the
    next update shrinks or grows at once.

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: learning rate, a number or a tensor of one element, at least 0.
        momentum: factor of the velocity, at least 0.
        weight_decay: factor of the L2 penalty, at least 0.
        maximize: follow the gradient instead of its negative.
        capturable: for CUDA graphs: the device counts the steps and reads a learning rate that is a
            tensor there. With a parameter on the CPU ``step`` raises ``AssertionError``.
        foreach, fused: accepted; neither selects an implementation, because there is only one.
        differentiable: not supported; True raises ``NotImplementedError``.
        state_bits, stochastic_rounding, master_weights, seed: how parameters and states are stored,
            see :class:`fusedopt.FusedOptimizer`.
        l1, ema_decay: what follows a step, see there.
        max_grad_norm, skip_nonfinite: of the optimizer as a whole, see there.

    State: ``velocity``, of the parameter's shape and dtype.

    Source: Polyak, Some methods of speeding up the convergence of iteration methods, 1964,
    equation 9; Sutskever et al., On the importance of initialization and momentum in deep learning,
    ICML 2013, equations 1 and 2. Reference: :func:`fusedopt.reference.momentum`.
    """

    _rule = "momentum"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
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
        if isinstance(lr, torch.Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0.0:
            raise ValueError(f"Invalid learning rate: {lr}")
        if not momentum >= 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults)
        refuse_fused_with_foreach(fused, foreach)
