"""What ranks run for the tests of steps in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import fusedopt
from distributed_helpers import (
    STEPS,
    assert_same_bits,
    backward,
    full,
    network,
    sharded,
)
from fusedopt.checking.rows import ROWS


def fsdp(rank, world_size):
    """FSDP2 calls the hooks of a shard with the reduced gradient."""
    mesh = init_device_mesh("cpu", (world_size,))
    for row in ROWS:
        models = [sharded(network(), mesh) for _ in range(2)]
        plain, released = (row.optimizer(m.parameters(), **row.options[-1]) for m in models)
        handle = fusedopt.step_in_backward(released)
        for step in range(STEPS):
            for model, optimizer in zip(models, (plain, released), strict=True):
                backward(model, rank, step)
                is_released = optimizer is released
                assert all((p.grad is None) == is_released for p in model.parameters())
                optimizer.step()
            whole = [full(p).detach().clone() for p in models[0].parameters()]
            assert_same_bits(models[1], torch.nn.ParameterList(whole), row.name)
        handle.remove()


def ddp(rank, world_size):
    """Wrapped before the steps go into the backward pass, and after."""
    model = network()
    wrapped = DistributedDataParallel(model)
    optimizer = fusedopt.AdamW(model.parameters())
    with pytest.raises(RuntimeError, match=r"parameter 0: is in a DistributedDataParallel"):
        fusedopt.step_in_backward(optimizer)
    backward(wrapped, rank, 0)
    optimizer.step()

    model = network()
    optimizer = fusedopt.AdamW(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    fusedopt.step_in_backward(optimizer)
    wrapped = DistributedDataParallel(model)
    with pytest.raises(RuntimeError, match="is in a DistributedDataParallel"):
        backward(wrapped, rank, 0)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
