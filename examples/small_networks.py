"""Three small networks, with the batches that they are trained on and learning rates for them.

All data comes with scikit-learn or with Python. The largest tensors of each network have at least
4,096 elements, so that eight bits are eight bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
import train_digits as digits
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Batches = Iterator[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention and two linear layers, each added to what it was given: (batch, length, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_heads, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wider, self.narrower = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.to_heads(self.first_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.from_heads(attended.transpose(1, 2).flatten(2))
        return x + self.narrower(functional.gelu(self.wider(self.second_norm(x))))


class CharacterTransformer(nn.Module):
    """Scores of the next character, (batch, length, characters), from ids, (batch, length)."""

    def __init__(self, characters: int, length: int, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.character = nn.Embedding(characters, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads=4) for _ in range(blocks)))
        self.norm, self.to_scores = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, ids: Tensor) -> Tensor:
        return self.to_scores(self.norm(self.blocks(self.character(ids) + self.position)))


@cache
def load_text() -> tuple[Tensor, int]:
    """The help texts that Python ships, as ids of characters, int64, and how many there are."""
    text = "".join(topics[name] for name in sorted(topics))
    characters = {character: index for index, character in enumerate(sorted(set(text)))}
    return torch.tensor([characters[character] for character in text]), len(characters)


@cache
def load_digits() -> digits.Digits:
    """The scans of ``train_digits.py``."""
    return digits.load_data()


def read_digits(generator: torch.Generator) -> tuple[nn.Module, Batches]:
    """The network of ``train_digits.py``."""

    def batches() -> Batches:
        while True:
            yield from digits.shuffled_batches(load_digits(), generator)

    return digits.build_model(generator.initial_seed()), batches()


def complete_digits(generator: torch.Generator) -> tuple[nn.Module, Batches]:
    """A network that draws whole scans from scans of which half of the pixels are left out."""

    def batches() -> Batches:
        images = load_digits().train_images
        while True:
            whole = images[torch.randint(len(images), (64,), generator=generator)]
            yield whole * torch.randint(2, whole.shape, generator=generator), whole

    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)), batches()


def continue_text(generator: torch.Generator) -> tuple[nn.Module, Batches]:
    """A transformer that reads 32 characters and guesses the one after each."""
    length = 32
    text, characters = load_text()

    def batches() -> Batches:
        while True:
            starts = torch.randint(len(text) - length, (16, 1), generator=generator)
            ids = text[starts + torch.arange(length + 1)]
            yield ids[:, :-1], ids[:, 1:]

    return CharacterTransformer(characters, length), batches()


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean over a batch, of scores whose last dimension is the classes."""
    return functional.cross_entropy(scores.flatten(0, -2), targets.flatten())


@dataclass(frozen=True)
class Task:
    """A network and its batches, and how they are trained.

    ``start``: makes both from a generator, whose seed is also that of the weights. ``rates``: the
    learning rate of each optimizer. Those of digits are the rates of ``train_digits.py``; the
    others, of 1 and 3 times the powers of ten, those whose final loss in float32 was the lowest on
    seed 0.
    """

    title: str
    start: Callable[[torch.Generator], tuple[nn.Module, Batches]]
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int
    rates: dict[str, float]


TASKS = {
    "digits": Task(
        "Digits",
        read_digits,
        cross_entropy,
        steps=460,
        rates={"SGD": 0.05, "Adagrad": 0.02, "RMSprop": 0.001, "Adam": 0.003, "AdamW": 0.003},
    ),
    "text": Task(
        "Character transformer",
        continue_text,
        cross_entropy,
        steps=400,
        rates={"SGD": 0.3, "Adagrad": 0.03, "RMSprop": 0.003, "Adam": 0.03, "AdamW": 0.03},
    ),
    "long": Task(
        "Missing pixels",
        complete_digits,
        functional.mse_loss,
        steps=10_000,
        rates={"SGD": 0.1, "Adagrad": 0.03, "RMSprop": 0.01, "Adam": 0.03, "AdamW": 0.03},
    ),
}
OPTIMIZERS = list(TASKS["digits"].rates)
