"""What the processes of test_distributed_stored.py run: fewer bytes in shards, on gloo."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import fusedopt
from distributed_helpers import full
from fusedopt import part_of
from fusedopt.checking.rows import ROWS
from helpers import bits

STEPS = 3
STORED = (
    (torch.float32, {"state_bits": 16, "seed": 7}),
    (torch.float32, {"state_bits": 8}),
    (torch.bfloat16, {"stochastic_rounding": True, "state_bits": 8, "seed": 2**64 - 1}),
    (torch.bfloat16, {"stochastic_rounding": True, "state_bits": 16}),
    (torch.bfloat16, {"master_weights": True, "state_bits": 8}),
    (torch.bfloat16, {"master_weights": True, "state_bits": 16}),
    (torch.float32, {"l1": 0.01, "ema_decay": 0.5}),
    (torch.bfloat16, {"master_weights": True, "state_bits": 16, "ema_decay": 1}),
)
# States of no parameter's shape.
COUNTS = ("step", "ema_step")
ADAMW = next(row for row in ROWS if row.name == "AdamW")
# Every optimizer with codes and random bits, and every way of storing.
CASES = (*((row, *STORED[2]) for row in ROWS), *((ADAMW, *stored) for stored in STORED))
# Over two ranks, cut at multiples of 256 elements: rows of whole blocks, in unequal shards, too;
# blocks of four rows; shards shorter than what is coded at all; and what is not coded.
ALIGNED = ((64, 256), (35, 256), (135, 64), (9215,), (16, 3, 96), (10, 20))
# Cut within blocks, into shards that a plain parameter would store in codes, too.
UNALIGNED = ((70, 131), (10000,))


class Parameters(torch.nn.Module):
    """Parameters of some shapes."""

    def __init__(self, shapes, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for n, shape in enumerate(shapes):
            value = torch.randn(shape, generator=generator).to(dtype)
            self.register_parameter(f"p{n}", torch.nn.Parameter(value))


def gradients(model, step):
    """Whole gradients, the same on all ranks, of different sizes from element to element."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        size = torch.randn(p.shape, generator=generator).exp()
        yield (size * torch.randn(p.shape, generator=generator)).to(p.dtype)


def placed(whole, param):
    """A tensor that is placed as a parameter, without communication, or by our own code."""
    if not hasattr(param, "device_mesh") or hasattr(whole, "device_mesh"):
        return whole
    (box,) = param.__create_chunk_list__()
    part = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))]
    return DTensor.from_local(
        part.clone(), param.device_mesh, param.placements, shape=whole.shape, stride=whole.stride()
    )


def local(tensor):
    return tensor.detach().to_local() if hasattr(tensor, "device_mesh") else tensor.detach()


def train(model, optimizer, steps=range(STEPS)):
    for step in steps:
        for param, grad in zip(model.parameters(), gradients(model, step), strict=True):
            param.grad = placed(grad, param)
        optimizer.step()


def flat_mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def sharded(shapes, dtype, mesh=None):
    """Under FSDP2."""
    return fully_shard(Parameters(shapes, dtype), mesh=mesh or flat_mesh())


def replaced(shapes, dtype, mesh, placements):
    """As tensor parallelism leaves parameters."""
    model = Parameters(shapes, dtype)
    for name, p in list(model.named_parameters()):
        whole = distribute_tensor(p.detach(), mesh, placements, src_data_rank=None)
        model.register_parameter(name, torch.nn.Parameter(whole))
    return model


def assert_same(model, optimizer, plain, plain_optimizer, what):
    """A model's shards, and those of its states, have the bits of the same parts of another."""
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert np.array_equal(bits(local(p)), bits(local(placed(q.detach(), p)))), f"{what}: {name}"
        states, expected = optimizer.state[p], plain_optimizer.state[q]
        assert states.keys() == expected.keys(), what
        for key, state in states.items():
            where = f"{what}: {name} {key}"
            assert state.dtype == expected[key].dtype, where
            assert state.shape == expected[key].shape, where
            assert torch.equal(local(state), local(placed(expected[key], state))), where


def aligned_shards(rank, world_size):
    """FSDP2 steps as one process does where no shard cuts a block."""
    for row, dtype, options in CASES:
        model, plain = sharded(ALIGNED, dtype), Parameters(ALIGNED, dtype)
        optimizer, other = (
            row.optimizer(m.parameters(), **row.usual, **options) for m in (model, plain)
        )
        train(model, optimizer)
        train(plain, other)
        assert_same(model, optimizer, plain, other, f"{row.name} {options}")
        for p in model.parameters():
            for key, state in optimizer.state[p].items():
                assert key in COUNTS or state.placements == p.placements, key


def unaligned_shards(rank, world_size):
    """Elsewhere blocks are those of the shard, and random bits still those of the whole."""
    for dtype, options in STORED:
        by_shard = options.get("state_bits") == 8
        if by_shard and options.get("stochastic_rounding"):
            continue  # no one process stores blocks of a shard with the random bits of the whole
        model, plain = sharded(UNALIGNED, dtype), Parameters(UNALIGNED, dtype)
        for name, p in model.named_parameters() if by_shard else ():
            plain.register_parameter(name, torch.nn.Parameter(local(p).clone()))
        optimizer, other = (fusedopt.AdamW(m.parameters(), **options) for m in (model, plain))
        for step in range(STEPS):
            for p, q, grad in zip(
                model.parameters(), plain.parameters(), gradients(model, step), strict=True
            ):
                p.grad = placed(grad, p)
                q.grad = local(p.grad).clone() if by_shard else grad
            optimizer.step()
            other.step()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            expected = q if by_shard else local(placed(q.detach(), p))
            assert np.array_equal(bits(local(p)), bits(expected)), options
            if by_shard:
                codes = local(optimizer.state[p]["exp_avg"])
                assert torch.equal(codes, other.state[q]["exp_avg"]), options


def one_after_the_other(rank, world_size):
    """Shards of any placements draw as their elements do, one shard after the other.

    Codes of columns that are whole blocks are those of the whole, too.
    """
    flat, square = flat_mesh(), init_device_mesh("cpu", (2, world_size // 2))
    for mesh, placements in (
        (flat, [Shard(0)]),
        (flat, [Shard(1)]),
        (flat, [Replicate()]),
        (square, [Shard(0), Shard(1)]),
        (square, [Shard(1), Shard(0)]),
        (square, [Shard(0), Shard(0)]),
        (square, [Replicate(), Shard(1)]),
    ):
        shapes = ((41, 30), (3, 7, 9))
        for dtype, options in STORED:
            if options.get("state_bits") == 16 and "ema_decay" not in options:
                compare_with_a_row_of_shards(shapes, dtype, options, mesh, placements)


def compare_with_a_row_of_shards(shapes, dtype, options, mesh, placements):
    model = replaced(shapes, dtype, mesh, placements)
    optimizer = fusedopt.AdamW(model.parameters(), **options)
    in_a_row = [ShardsInARow(p) for p in model.parameters()]
    flat = [
        torch.nn.Parameter(one.in_a_row(p))
        for one, p in zip(in_a_row, model.parameters(), strict=True)
    ]
    other = fusedopt.AdamW(flat, **options)
    for step in range(STEPS):
        for p, q, one, grad in zip(
            model.parameters(), flat, in_a_row, gradients(model, step), strict=True
        ):
            p.grad = placed(grad, p)
            q.grad = one.in_a_row(p.grad)
        optimizer.step()
        other.step()
    for p, q, one in zip(model.parameters(), flat, in_a_row, strict=True):
        where = f"{options} {placements}"
        assert np.array_equal(bits(one.in_a_row(p)), bits(q)), where
        for key, state in optimizer.state[p].items():
            if key not in COUNTS:
                assert torch.equal(one.in_a_row(state), other.state[q][key]), f"{where} {key}"


class ShardsInARow:
    """Puts the shards of tensors that are placed as a parameter into the order of their numbers."""

    def __init__(self, param):
        self.of, self.first = part_of(param)
        self.numel = param.to_local().numel()
        boxes = param.__create_chunk_list__()  # torch's own idea of where the shard lies
        starts, sizes = tuple(boxes[0].offsets), tuple(boxes[0].sizes)
        assert math.prod(sizes) == self.numel
        if all(p == Shard(0) or p == Replicate() for p in param.placements) and self.numel:
            assert self.first == starts[0] * math.prod(param.shape[1:])

    def in_a_row(self, tensor):
        pieces = [None] * dist.get_world_size()
        dist.all_gather_object(pieces, (self.first, tensor.detach().to_local().reshape(-1)))
        by_number = {first: piece for first, piece in pieces if piece.numel()}
        row = torch.cat([by_number[first] for first in sorted(by_number)])
        assert len(row) == self.of
        position = 0
        for first in sorted(by_number):
            assert first == position
            position += by_number[first].numel()
        return row


def columns(rank, world_size):
    """Columns that are whole blocks are stored as one process stores them; others by the shard."""
    mesh, dtype, options = flat_mesh(), torch.float32, {"state_bits": 8}
    shapes = ((20, 512), (9, 768))
    model, plain = replaced(shapes, dtype, mesh, [Shard(1)]), Parameters(shapes, dtype)
    optimizer, other = (fusedopt.AdamW(m.parameters(), **options) for m in (model, plain))
    train(model, optimizer)
    train(plain, other)
    (p, wide), (q, _) = model.parameters(), plain.parameters()
    assert optimizer.state[p]["exp_avg_scale"].shape == (20, 2)
    assert torch.equal(full(p), q)
    assert torch.equal(full(optimizer.state[p]["exp_avg"]), other.state[q]["exp_avg"])
    assert optimizer.state[wide]["exp_avg_scale"].shape == (1, 2, 14)


def cut_twice(rank, world_size):
    """FSDP2 over tensor parallelism: cut by the later dimension of the mesh first."""
    mesh = init_device_mesh("cpu", (2, world_size // 2), mesh_dim_names=("data", "tensor"))
    for dtype, options in STORED:
        torch.manual_seed(0)
        plain = torch.nn.Sequential(torch.nn.Linear(256, 32), torch.nn.Linear(32, 512)).to(dtype)
        model = copy.deepcopy(plain)
        plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
        fully_shard(parallelize_module(model, mesh["tensor"], plan), mesh=mesh["data"])
        assert isinstance(model[0].weight.placements[0], _StridedShard)
        optimizer, other = (fusedopt.AdamW(m.parameters(), **options) for m in (model, plain))
        train(model, optimizer)
        train(plain, other)
        by_columns = model[1].weight
        assert by_columns.placements == (Shard(0), Shard(1))
        model[1].weight = plain[1].weight = None  # other bits, as one_after_the_other() checks
        assert_same(model, optimizer, plain, other, f"cut twice {options}")


def refused(rank, world_size):
    """Shards of which one cannot say on every rank how all are cut: by name, before any step."""
    mesh = init_device_mesh("cpu", (2, world_size // 2))

    def made(shape, placements, **options):
        whole = torch.ones(shape)
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, placements, src_data_rank=None))
        return fusedopt.AdamW([torch.nn.Parameter(torch.ones(3)), param], **options)

    uneven = [Shard(0), Shard(0)]
    with pytest.raises(
        NotImplementedError,
        match="group 0, parameter 1: state_bits cannot be asked for: its dimension 0 of size 4097",
    ):
        made((4097,), uneven, state_bits=8)
    made((4097,), uneven, state_bits=16)
    made((4095,), uneven, state_bits=8)  # has no codes
    in_pieces = [_StridedShard(0, split_factor=2), Replicate()]
    with pytest.raises(
        NotImplementedError,
        match=r"group 0, parameter 1: state_bits, seed cannot be asked for: its shards.*one piece",
    ):
        made((8, 8), in_pieces, state_bits=16, seed=3)
    made((8, 8), in_pieces)

    # All elements count, not those of a shard, also where a step looks at what there is.
    optimizer = made((8, 512), [Shard(0), Replicate()], state_bits=8)
    _, param = optimizer.param_groups[0]["params"]
    param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[param]["exp_avg"] = torch.zeros_like(param)
    assert param.to_local().numel() < 4096
    with pytest.raises(ValueError, match="'exp_avg' is stored as float32, which is not what"):
        optimizer.step()
