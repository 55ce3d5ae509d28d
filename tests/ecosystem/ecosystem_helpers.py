"""What the checks of the training libraries share."""

from __future__ import annotations

import inspect

import numpy as np
import torch

import fusedopt
from code_blocks import ROOT, file_of
from fusedopt.checking.rows import ROWS
from helpers import bits

TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]

# With whom clipping is tried, and the norm to which it is.
CLIPPED = [(fusedopt.SGD, {"lr": 0.1, "momentum": 0.8}), (fusedopt.AdamW, {"lr": 0.01})]
MAX_NORM = 0.1


def options(row):
    """Options under which a few steps change something, and which every state depends on."""
    wanted = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.8, "centered": True, "amsgrad": True}
    accepted = inspect.signature(row.optimizer).parameters
    return {key: value for key, value in wanted.items() if key in accepted}


def schedule(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.2, total_iters=6)


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1)
    ).double()


def dataset():
    """24 samples: a vector and its mean."""
    inputs = torch.randn(24, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.utils.data.TensorDataset(inputs, inputs.mean(1, keepdim=True))


def assert_same_bits(model, other):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert np.array_equal(bits(p), bits(q)), name


def assert_close(model, other, rtol=1e-9, atol=1e-12):
    """Two optimizers with the same formula differ by rounding only, here that of float64."""
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)


def assert_moved(model, start):
    """Every parameter was trained."""
    for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True):
        assert not torch.equal(p, q), name


def assert_differs(model, other, rtol=1e-9, atol=1e-12):
    """By more than assert_close allows, in every parameter."""
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert not torch.allclose(p, q, rtol=rtol, atol=atol), name


def assert_same_norms(ours, theirs, model, dtype=torch.float64):
    """Of n gradients: n/2 roundings of a sum of squares, and as many of the norms of tensors."""
    count = sum(p.numel() for p in model.parameters())
    ours, theirs = (
        torch.tensor([float(norm) for norm in norms], dtype=torch.float64)
        for norms in (ours, theirs)
    )
    torch.testing.assert_close(ours, theirs, rtol=count * torch.finfo(dtype).eps, atol=0)


def run_guide(title, names):
    """Runs a block of the guide on clipping, and returns the names that it has then."""
    names = {"fusedopt": fusedopt, "torch": torch, **names}
    exec(file_of(ROOT / "docs" / "guides" / "clipping.md", title), names)
    return names
