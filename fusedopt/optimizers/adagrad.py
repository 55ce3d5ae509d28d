"""AdaGrad."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusedopt.forks import torch_on_one_thread_if_forked
from fusedopt.optimizers import storage
from fusedopt.optimizers.base import FusedOptimizer

if TYPE_CHECKING:
    from torch.optim.optimizer import ParamsT


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
        capturable: for CUDA graphs: the device counts the steps and reads a learning rate that is a
            tensor there. With a parameter on the CPU ``step`` raises ``AssertionError``.
        foreach, fused: accepted; neither selects an implementation, because there is only one.
        differentiable: not supported; True raises ``NotImplementedError``.
        state_bits, stochastic_rounding, master_weights, seed: how parameters and states are stored,
            see :class:`fusedopt.FusedOptimizer`.
        l1, ema_decay: what follows a step, see there.
        max_grad_norm, skip_nonfinite: of the optimizer as a whole, see there.

    State, created by the constructor: ``step`` (a 0-dim tensor, on the CPU unless the group is
    capturable or fused) and ``sum``, of the parameter's shape and dtype.

    Source: Duchi, Hazan, Singer, Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization, JMLR 12, 2011, figure 1. Reference: :func:`fusedopt.reference.adagrad`.
    """

    _rule = "adagrad"

    def __init__(
        self,
        params: ParamsT,
        lr: float | torch.Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
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
        with torch_on_one_thread_if_forked():  # torch's constructor creates the state
            super().__init__(
                params,
                lr,
                lr_decay,
                weight_decay,
                initial_accumulator_value,
                eps,
                foreach,
                maximize=maximize,
                differentiable=differentiable,
                fused=fused,
            )
        if capturable:
            self._set_option("capturable", True)
        for group in self.param_groups:
            initial = self._initial_value("sum", group)
            for param in group["params"]:
                states = self.state[param]
                if group.get("capturable"):
                    states["step"] = self._create_state("step", param, group)
                if group.get("state_bits") is not None:
                    with torch_on_one_thread_if_forked():
                        states |= storage.filled_state("sum", param, group, initial)

    def share_memory(self) -> None:
        """Moves sums to shared memory, as torch's does, with their scales and remainders."""
        for states in self.state.values():
            for name, state in states.items():
                if isinstance(state, torch.Tensor) and name != "step":
                    state.share_memory_()  # type: ignore[no-untyped-call]

    def _initial_value(self, name: str, group: dict[str, Any]) -> float:
        return float(group["initial_accumulator_value"])
