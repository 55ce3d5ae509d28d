"""What optimizers of this package do within a step, done around it with torch's functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import softshrink
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class Sequence:
    """Clips, steps, shrinks and averages, as far as it is asked for.

    Args:
        model: whose parameters are trained, all with one learning rate.
        optimizer: of torch's.
        max_grad_norm, l1, ema_decay: as those of an optimizer of this package.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        max_grad_norm: float | None = None,
        l1: float = 0.0,
        ema_decay: float | None = None,
    ) -> None:
        self.params = list(model.parameters())
        self.model, self.optimizer = model, optimizer
        self.max_grad_norm, self.l1 = max_grad_norm, l1
        # Without a function for it, AveragedModel keeps the plain mean.
        average: dict[str, Any] = {"multi_avg_fn": None}
        if ema_decay is not None and ema_decay != 1:
            average["multi_avg_fn"] = get_ema_multi_avg_fn(ema_decay)
        self.averages = None if ema_decay is None else AveragedModel(model, **average)

    def zero_grad(self) -> None:
        """Drops all gradients."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """What ``optimizer.step()`` of this package does with the same options."""
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
        self.optimizer.step()
        if self.l1:
            threshold = self.optimizer.param_groups[0]["lr"] * self.l1
            with torch.no_grad():
                for param in self.params:
                    param.copy_(softshrink(param, threshold))
        if self.averages is not None:
            self.averages.update_parameters(self.model)
