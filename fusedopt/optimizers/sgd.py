"""Stochastic gradient descent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt.optimizers.base import FusedOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


class SGD(FusedOptimizer, torch.optim.SGD):
    r"""Stochastic gradient descent with the signature and results of ``torch.optim.SGD``.

    .. code-block:: text

        grad = grad + weight_decay * param
        momentum_buffer = momentum * momentum_buffer + (1 - dampening) * grad   (first: a copy)
        grad = grad + momentum * momentum_buffer  with nesterov, else  momentum_buffer
        param = param - lr * grad

    The learning rate multiplies the buffer when it is applied. :class:`fusedopt.Momentum` and
    :class:`fusedopt.Nesterov` keep it inside the velocity, as textbooks do.

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: learning rate, a number or a tensor of one element, at least 0.
        momentum: factor of the buffer, at least 0; 0 keeps no state.
        dampening: 1 minus the weight of the gradient in the buffer.
        weight_decay: factor of the L2 penalty, at least 0.
        nesterov: Nesterov momentum; needs a momentum and no dampening.
        maximize: follow the gradient instead of its negative.
        capturable: for CUDA graphs: the device counts the steps and reads a learning rate that is a
            tensor there. With a parameter on the CPU ``step`` raises ``AssertionError``.
        foreach, fused: accepted; neither selects an implementation, because there is only one.
        differentiable: not supported; True raises ``NotImplementedError``.
        state_bits, stochastic_rounding, master_weights, seed: how parameters and states are stored,
            see :class:`fusedopt.FusedOptimizer`.
        l1, ema_decay: what follows a step, see there.
        max_grad_norm, skip_nonfinite: of the optimizer as a whole, see there.

    State: ``momentum_buffer``, of the parameter's shape and dtype.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning,
    ICML 2013, in the form that PyTorch documents. Reference: :func:`fusedopt.reference.sgd`.
    """

    _rule = "sgd"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | torch.Tensor = 0,
        nesterov: bool = False,
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
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        if capturable:
            self._set_option("capturable", True)

    def _initial_value(self, name: str, group: dict[str, Any]) -> float:
        # From a buffer of -0 the formula makes the copy that the first one has to be.
        return -0.0
