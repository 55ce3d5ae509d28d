"""What the tests of steps in the backward pass share: a network, its optimizers, the usual loop."""

from __future__ import annotations

import torch

import fusedopt
from helpers import snapshot

STEPS = 4


class Network(torch.nn.Module):
    """A parameter that is used twice, one that is used in some steps only, and one never."""

    def __init__(self, dtype=torch.float32, width=8):
        super().__init__()
        torch.manual_seed(3)
        linear = torch.nn.Linear(width, width, dtype=dtype)
        self.twice, self.last = linear, torch.nn.Linear(width, width, dtype=dtype)
        self.sometimes = torch.nn.Parameter(torch.randn(width, dtype=dtype))
        self.never = torch.nn.Parameter(torch.randn(3, dtype=dtype))

    def forward(self, x, number=0):
        x = self.twice(torch.tanh(self.twice(x)))
        return self.last(x * self.sometimes if number % 2 == 0 else x)


def groups_of(model):
    """Two groups with options of their own: numbers of parameters run through both."""
    params = [*model.parameters()]
    return [{"params": params[:3]}, {"params": params[3:], "lr": 0.02}]


def loss_of(model, step, micro_batch=0):
    """A loss, the same for the same numbers."""
    generator = torch.Generator().manual_seed(100 * step + micro_batch)
    param = max(model.parameters(), key=torch.numel)
    x = torch.randn(4, param.shape[1], generator=generator).to(param.dtype)
    return model(x, step + micro_batch).square().sum()


def assert_same(optimizer, other):
    """Bits of every parameter and state, and which there are."""
    ours, theirs = snapshot(optimizer), snapshot(other)
    for entries in (*ours.values(), *theirs.values()):
        del entries["grad"], entries["version"]
    assert ours == theirs


def both(make=lambda model: fusedopt.AdamW(groups_of(model), lr=0.01), model=Network, **options):
    """A model with its optimizer, and the same again with steps in the backward pass."""
    plain, released = model(), model()
    optimizers = make(plain), make(released)
    return (
        plain,
        optimizers[0],
        released,
        optimizers[1],
        fusedopt.step_in_backward(optimizers[1], **options),
    )


def train(model, optimizer, steps=STEPS, first=0):
    """The usual loop."""
    for step in range(first, first + steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
