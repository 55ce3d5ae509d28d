"""What is trained: small models of three kinds, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


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
