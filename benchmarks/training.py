"""Whole training steps: what share of a user's time another optimizer saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from .measure import LR, Conditions, describe_timing
from .others import Factory
from .peers import CONTESTS, OURS, TRAINED
from .progress import Bars
from .timing import Step, clock_of, interleave, ratio, summarize

# Torch's default on the CPU is its for-loop.
_ROW = CONTESTS[TRAINED].row
OPTIMIZERS: dict[str, Factory] = {
    OURS: _ROW.optimizer,
    "torch": _ROW.torch_twin[0],
    "foreach": partial(_ROW.torch_twin[0], foreach=True),
    "fused": partial(_ROW.torch_twin[0], fused=True),
}


class Transformer(nn.Module):
    """A causal language model of characters: 4 layers of width 128, 64 characters of context.

    Its inputs are integers of shape (batch, 64) and its outputs (batch, vocabulary, 64).
    """

    def __init__(self, vocabulary: int = 128, context: int = 64, width: int = 128) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(
            width, nhead=4, dim_feedforward=4 * width, dropout=0.0, batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context))

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Logits of the next character."""
        hidden = self.characters(text) + self.positions
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits: torch.Tensor = self.head(hidden)
        return logits.transpose(1, 2)


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def _convolutional() -> nn.Module:
    """Four convolutions for 32 x 32 images in 10 classes, each with batch normalisation."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64), (64, 64)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2),
        ]  # fmt: skip
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 2 * 2, 10))


def _images(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(shape), torch.randint(10, shape[:1])


def _text(batch: int, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    text = torch.randint(128, (batch, context + 1))
    return text[:, :-1], text[:, 1:]


# Model, and a batch of inputs and targets: 64 images, 16 images, 4 texts.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[torch.Tensor, torch.Tensor]]]]
MODELS = {
    "MLP": (_mlp, lambda: _images(64, 784)),
    "convolutional": (_convolutional, lambda: _images(16, 3, 32, 32)),
    "transformer": (Transformer, lambda: _text(4, 64)),
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
