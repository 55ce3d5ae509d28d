"""AdaGrad."""

from typing import Any

import torch

from fusedopt.optimizer import FusedOptimizer


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    r"""AdaGrad with the signature and results of ``torch.optim.Adagrad``.

    .. code-block:: text

        grad = grad + weight_decay * param
        sum = sum + grad^2
        param = param - lr / (1 + (step - 1) * lr_decay) * grad / (sqrt(sum) + eps)

    Args:
        params: parameters (float32, float64, bfloat16 or float16) or dicts defining groups.
        lr: learning rate, a number or a tensor of one element, at least 0.
        lr_decay: decay of the learning rate with the step count, at least 0.
        weight_decay: factor of the L2 penalty, at least 0.
        initial_accumulator_value: what ``sum`` starts from, at least 0.
        eps: added to the root, at least 0.
        maximize: follow the gradient instead of its negative.
        foreach, fused: accepted, no effect: there is one implementation.
        differentiable: not supported; True raises ``NotImplementedError``.

    State, created by the constructor: ``step`` (a 0-dim tensor on the CPU) and ``sum``, of the
    parameter's shape and dtype.

    Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization, JMLR 12, 2011, figure 1. Reference: :func:`fusedopt.reference.adagrad`.
    """

    _rule = "adagrad"

    def _create_state(self, name: str, param: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        state = super()._create_state(name, param, group)
        return state.fill_(group["initial_accumulator_value"]) if name == "sum" else state
