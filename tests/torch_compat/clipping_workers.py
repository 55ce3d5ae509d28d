"""What test_distributed.py runs of norms and clipping, each in a group of ranks on gloo."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fusedopt
from distributed_helpers import assert_same_bits, backward, copy_gradients, network, sharded
from helpers import bits, content

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer

BLOCK = 65536


def _normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fsdp_norm(rank, world_size):
    """Shards of whole blocks: the norm and the step of one process, bit for bit."""
    mesh = init_device_mesh("cpu", (world_size,))
    torch.manual_seed(0)
    layers = [torch.nn.Linear(256, 256 * world_size * k, bias=False) for k in (1, 2)]
    plain = torch.nn.Sequential(*layers)
    model = copy.deepcopy(plain)
    fully_shard(model, mesh=mesh)
    optimizers = [
        fusedopt.AdamW(m.parameters(), max_grad_norm=1.0, skip_nonfinite=True)
        for m in (model, plain)
    ]
    for step in range(3):
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            q.grad = _normal(*q.shape, seed=step)
            if step == 1:
                q.grad[-1, -1] = math.inf  # which the last rank alone has
            p.grad = distribute_tensor(q.grad, mesh, p.placements)
        for optimizer in optimizers:
            optimizer.step()
        assert content(optimizers[0].grad_norm) == content(optimizers[1].grad_norm)
        assert optimizers[0].skipped == optimizers[1].skipped == (step == 1)
        assert_same_bits(model, plain, step)
    params = list(model.parameters())
    norm = fusedopt.clip_grad_norm_(params, 1.0)
    assert not isinstance(norm, DTensor)
    assert content(norm) == content(fusedopt.clip_grad_norm_(plain.parameters(), 1.0))
    for p, q in zip(params, plain.parameters(), strict=True):
        assert np.array_equal(bits(p.grad.full_tensor()), bits(q.grad))


def fsdp_uneven_norm(rank, world_size):
    """Shards that are cut anywhere, some empty: the norm of torch, up to the last bits."""
    mesh = init_device_mesh("cpu", (world_size,))
    model, plain = sharded(network(), mesh), network()
    optimizer = fusedopt.SGD(model.parameters(), lr=0.1, max_grad_norm=0.01)
    beside = torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(3):
        backward(model, rank, step)
        copy_gradients(model, plain)
        optimizer.step()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.01)
        beside.step()
        torch.testing.assert_close(optimizer.grad_norm, norm, rtol=1e-14, atol=0)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.full_tensor(), q, rtol=1e-12, atol=1e-14)


def norm_over_meshes(rank, world_size):
    """Parameters that are cut up over one dimension of a mesh, the other, both or none."""
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("dp", "tp"))
    placements = (
        [Shard(0), Shard(0)], [Shard(0), Replicate()], [Replicate(), Shard(0)],
        [Replicate(), Replicate()], None,
    )  # fmt: skip
    values = [_normal(4 * BLOCK, seed=seed) for seed in range(len(placements))]
    params = []
    for value, placement in zip(values, placements, strict=True):
        whole = torch.zeros(4 * BLOCK)
        if placement is not None:
            whole, value = (distribute_tensor(t, mesh, placement) for t in (whole, value))
        params.append(torch.nn.Parameter(whole))
        params[-1].grad = value
    optimizer = fusedopt.SGD(params, lr=1.0, max_grad_norm=1.0)
    optimizer.step()
    expected = fusedopt.get_total_norm(values)
    assert content(optimizer.grad_norm.float()) == content(expected)
    assert content(fusedopt.get_total_norm([p.grad for p in params])) == content(expected)
    on_sub_mesh = distribute_tensor(values[0], mesh["tp"], [Shard(0)])
    assert content(fusedopt.get_total_norm([on_sub_mesh, values[1]])) == content(
        fusedopt.get_total_norm(values[:2])
    )
    # A sum that is pending: each rank has a part of every element.
    line = init_device_mesh("cpu", (world_size,))
    parts = DTensor.from_local(torch.full((3,), float(rank)), line, [Partial()])
    total = float(sum(range(world_size)))
    assert fusedopt.get_total_norm([parts]) == fusedopt.get_total_norm([torch.full((3,), total)])


def zero_is_refused(rank, world_size):
    """Its ranks have parts of the parameters that none of them knows as such."""
    for options in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
        with pytest.raises(ValueError, match="with ZeroRedundancyOptimizer, whose ranks"):
            ZeroRedundancyOptimizer(
                network().parameters(), optimizer_class=fusedopt.AdamW, lr=0.1, **options
            )
    dist.barrier()
