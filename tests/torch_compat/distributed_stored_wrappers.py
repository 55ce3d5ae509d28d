"""What the processes of test_distributed_stored.py wrap: fewer bytes under torch's wrappers."""

from __future__ import annotations

import copy
import io
import warnings

import numpy as np
import torch
import torch.distributed as dist
from distributed_stored import (
    ALIGNED,
    STORED,
    Parameters,
    flat_mesh,
    local,
    placed,
    sharded,
    train,
)
from distributed_stored import train as train_with_given_gradients
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fusedopt
from helpers import bits

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer


def network(dtype):
    torch.manual_seed(0)
    layers = torch.nn.Linear(64, 256), torch.nn.Tanh(), torch.nn.Linear(256, 16)
    return torch.nn.Sequential(*layers).to(dtype)


def backward(model, rank, step, dtype):
    """Gradients of a rank's own batch."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    model.zero_grad()
    model(torch.randn(8, 64, generator=generator).to(dtype)).float().square().mean().backward()


def ddp(rank, world_size):
    """Ranks do not drift apart: parameters and states have the same bits on all of them."""
    for dtype, options in STORED:
        model = DistributedDataParallel(network(dtype))
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.01, **options)
        for step in range(4):
            backward(model, rank, step, dtype)
            optimizer.step()
        for name, p in model.named_parameters():
            for key, tensor in {"param": p.detach(), **optimizer.state[p]}.items():
                everyone = [None] * world_size
                dist.all_gather_object(everyone, tensor)
                assert all(torch.equal(tensor, other) for other in everyone), (name, key, options)


def zero(rank, world_size):
    """Each rank stores the states of its own parameters, and a consolidated checkpoint resumes."""
    for dtype, options in STORED:
        models = [Parameters(ALIGNED, dtype) for _ in range(2)]
        model, plain = models

        def wrapped(model, options=options):
            groups = [{"params": [p], "seed": n} for n, p in enumerate(model.parameters())]
            return ZeroRedundancyOptimizer(groups, optimizer_class=fusedopt.AdamW, **options)

        optimizer = wrapped(model)
        other = fusedopt.AdamW(plain.parameters(), **options)
        train_with_given_gradients(model, optimizer)
        train_with_given_gradients(plain, other)
        if not (options.get("stochastic_rounding") or options.get("state_bits") == 16):
            assert_same_parameters(model, plain, f"not wrapped, {options}")
        again = copy.deepcopy(model)
        resumed = wrapped(again)
        resumed.load_state_dict(consolidated(optimizer, rank))
        for one, its in ((model, optimizer), (again, resumed)):
            train_with_given_gradients(one, its, range(3, 5))
        assert_same_parameters(model, again, f"resumed, {options}")
        for p in model.parameters():
            everyone = [None] * world_size
            dist.all_gather_object(everyone, p.detach())
            assert all(torch.equal(p, q) for q in everyone), options


def zero_draws(rank, world_size):
    """With a seed for each parameter, those of different ranks draw different random bits."""
    params = [torch.nn.Parameter(torch.ones(3000).bfloat16()) for _ in range(world_size)]
    groups = [{"params": [p], "seed": n} for n, p in enumerate(params)]
    optimizer = ZeroRedundancyOptimizer(
        groups, optimizer_class=fusedopt.SGD, lr=1e-3, stochastic_rounding=True
    )
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    first, second = params[:2]
    assert first.unique().numel() == 2
    assert 0.2 < (first != second).float().mean() < 0.8


def assert_same_parameters(model, other, what):
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert np.array_equal(bits(p), bits(q)), f"{what}: {name}"


def consolidated(optimizer, rank):
    """The whole state dict, which only one rank has, on all ranks."""
    optimizer.consolidate_state_dict(to=1)
    stream = io.BytesIO()
    if rank == 1:
        torch.save(optimizer.state_dict(), stream)
    box = [stream.getvalue()]
    dist.broadcast_object_list(box, src=1)
    return torch.load(io.BytesIO(box[0]), weights_only=True)


def policies(rank, world_size):
    """FSDP2 that computes in bfloat16, and that keeps shards on the CPU: gradients in float32."""
    mixed = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for policy in ({"mp_policy": mixed}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}):
        for dtype, options in STORED[:2]:
            model, plain = network(dtype), network(dtype)
            fully_shard(model, mesh=flat_mesh(), **policy)
            optimizer, other = (
                fusedopt.AdamW(m.parameters(), lr=0.01, **options) for m in (model, plain)
            )
            for step in range(3):
                backward(model, rank, step, dtype)
                for p, q in zip(model.parameters(), plain.parameters(), strict=True):
                    assert p.grad.dtype == dtype
                    q.grad = p.grad.full_tensor()
                optimizer.step()
                other.step()
            for p, q in zip(model.parameters(), plain.parameters(), strict=True):
                assert np.array_equal(bits(local(p)), bits(local(placed(q.detach(), p)))), policy


def averaged(rank, world_size):
    """The averages of shards are the shards of averages."""
    for dtype, options in STORED:
        if "ema_decay" not in options:
            continue
        model, plain = sharded(ALIGNED, dtype), Parameters(ALIGNED, dtype)
        optimizer, other = (fusedopt.AdamW(m.parameters(), **options) for m in (model, plain))
        train(model, optimizer)
        train(plain, other)
        before = [local(p).clone() for p in model.parameters()]
        with optimizer.averaged(), other.averaged():
            for p, q, old in zip(model.parameters(), plain.parameters(), before, strict=True):
                assert torch.equal(local(p), local(placed(q.detach(), p)))
                assert not old.numel() or not torch.equal(local(p), old)
        for p, old in zip(model.parameters(), before, strict=True):
            assert torch.equal(local(p), old)
        train(model, optimizer)


def at_iterate(rank, world_size):
    """Nesterov's iterate of shards whose velocity is stored in codes."""
    model = fully_shard(Parameters(ALIGNED, torch.float32), mesh=flat_mesh())
    plain = Parameters(ALIGNED, torch.float32)
    optimizer, other = (
        fusedopt.Nesterov(m.parameters(), lr=0.1, state_bits=8) for m in (model, plain)
    )
    train_with_given_gradients(model, optimizer)
    train_with_given_gradients(plain, other)
    before = [bits(local(p)).copy() for p in model.parameters()]
    with optimizer.at_iterate(), other.at_iterate():
        for p, q, value in zip(model.parameters(), plain.parameters(), before, strict=True):
            assert np.array_equal(bits(local(p)), bits(local(placed(q.detach(), p))))
            assert not local(p).numel() or (bits(local(p)) != value).any()
    for p, value in zip(model.parameters(), before, strict=True):
        assert np.array_equal(bits(local(p)), value)
