"""What the checks of test_distributed.py share: networks, gradients and comparisons."""

from __future__ import annotations

import os
import warnings

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from fusedopt.checking.cases import CASES
from helpers import bits

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)


STEPS = 3


# Two implementations of one formula in float64 differ by rounding only, here by 1e-16 a step; where
# a root of nearly nothing is divided by, that grows.
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def _by_states(table):
    """One case for every set of states, the last, which has the most options off their defaults.

    Wrappers cannot tell the others apart, and what options do is tried without them.
    """
    switches = ("momentum", "centered", "amsgrad")
    return {(c.row.name, *(bool(c.options.get(s)) for s in switches)): c for c in table}.values()


LAST_CASES = tuple(_by_states(CASES))


def in_group(rank, function, world_size, rendezvous, *args):
    """Runs a check in a process group of gloo."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    warnings.simplefilter("error")
    # torch's own: ZeroRedundancyOptimizer and DCP call what torch has deprecated.
    warnings.filterwarnings("ignore", module=r"torch\.")
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    try:
        function(rank, world_size, *args)
    finally:
        dist.destroy_process_group()


class Uneven(torch.nn.Module):
    """Parameters of 1, 3 and 7 rows: over 4 ranks, shards of unequal sizes and empty ones."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(5, 7)
        self.second = torch.nn.Linear(7, 3)
        self.last = torch.nn.Linear(3, 1)
        self.scale = torch.nn.Parameter(torch.tensor([1.5]))

    def forward(self, inputs):
        hidden = torch.tanh(self.first(inputs))
        return self.scale * self.last(torch.tanh(self.second(hidden)))


def network():
    torch.manual_seed(0)
    return Uneven().double()


def sharded(model, mesh):
    """The model under FSDP2, in two units."""
    fully_shard(model.first, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def backward(model, rank, step, scaler=None):
    """Gradients of a rank's own batch."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    model.zero_grad()
    loss = (model(inputs) - inputs.mean(1, keepdim=True)).square().mean()
    (scaler.scale(loss) if scaler else loss).backward()


def full(tensor):
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_gradients(source, target):
    """Gives a plain copy of a model the whole gradients of a distributed one."""
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        q.grad = None if p.grad is None else full(p.grad).detach().clone()


def assert_same_bits(model, plain, what):
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert np.array_equal(bits(full(p)), bits(q)), f"{what}: {name}"


def assert_close(model, optimizer, other, other_optimizer, what):
    """Parameters and states of two optimizers, laid out alike, differ by rounding only."""

    def message(default):
        return f"{what}: {default}"

    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(full(p), full(q), **CLOSE, msg=message)
        state, expected = optimizer.state[p], other_optimizer.state[q]
        assert state.keys() == expected.keys(), what
        for name, value in expected.items():
            assert type(state[name]) is type(value), (what, name)
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(full(state[name]), full(value), **CLOSE, msg=message)
            if isinstance(value, DTensor):
                assert state[name].placements == value.placements, (what, name)


def assert_same_on_all_ranks(model, what):
    for name, p in model.named_parameters():
        mine = p.detach().contiguous()
        of_rank_0 = mine.clone()
        dist.broadcast(of_rank_0, 0)
        assert np.array_equal(bits(mine), bits(of_rank_0)), f"{what}: {name}"
