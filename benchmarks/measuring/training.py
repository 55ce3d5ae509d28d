"""Whole training steps: what share of a user's time another optimizer saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from ..contestants.contests import CONTESTS, OURS, TRAINED
from ..contestants.others import Factory
from ..workloads.models import MODELS
from .describe import describe_timing
from .measure import LR, Conditions
from .progress import Bars
from .timing import Step, clock_of, interleave, ratio, summarize

# Torch's default on the CPU is its for-loop.
_OURS: Factory = CONTESTS[TRAINED].row.optimizer
_TORCHS: Factory = CONTESTS[TRAINED].row.torch_twin[0]
OPTIMIZERS: dict[str, Factory] = {
    OURS: _OURS,
    "torch": _TORCHS,
    "foreach": partial(_TORCHS, foreach=True),
    "fused": partial(_TORCHS, fused=True),
}


def training(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Forward, backward, clipping, step and zeroing of each model with each optimizer, in float32.

    Returns:
        A row a model: the timings of each optimizer, and the share of a step's time that this
        package saves, against torch's default and its fastest.
    """
    rows = []
    for name, (make, batch) in MODELS.items():
        bars.start(f"training: {name}")
        rows.append({"model": name, **measure_training(make, batch, conditions, bars)})
    return rows


def measure_training(
    make: Callable[[], nn.Module],
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    conditions: Conditions,
    bars: Bars,
) -> dict[str, Any]:
    """One row: equal models on equal data, in turns."""
    torch.manual_seed(0)
    inputs, targets = (tensor.to(conditions.device) for tensor in batch())
    models = {}
    for optimizer in OPTIMIZERS:
        torch.manual_seed(0)
        models[optimizer] = make().to(conditions.device)
    parameters = [param.numel() for param in models[OURS].parameters()]
    steps = {
        name: training_step(models[name], optimizer, inputs, targets)
        for name, optimizer in OPTIMIZERS.items()
    }
    for step in steps.values():
        for _ in range(conditions.settings.warmup):
            step()
    timings = interleave(steps, conditions.settings, bars.advance, clock_of(conditions.device))
    theirs = [name for name in timings if name != OURS]
    fastest = min(theirs, key=lambda name: summarize(timings[name].seconds).median)
    shares = {name: ratio(timings[OURS], timings[name]) for name in theirs}
    return {
        "tensors": len(parameters),
        "elements": sum(parameters),
        "fastest_torch": fastest,
        "peers": {name: describe_timing(timing) for name, timing in timings.items()},
        "share_of": {name: asdict(share) for name, share in shares.items()},
    }


def training_step(
    model: nn.Module,
    optimizer: Factory,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> Step:
    """One training step of a model, to be called again and again."""
    params = list(model.parameters())
    stepper = optimizer(params, lr=LR)
    loss_of = nn.CrossEntropyLoss()

    def step() -> None:
        loss_of(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
        stepper.step()
        stepper.zero_grad()

    return step
