"""What the processes of test_distributed.py run: checks on gloo, each in a group of ranks.

Every function is called as ``function(rank, world_size, *args)`` in a process of its own.
"""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fusedopt
from distributed_helpers import (
    CLOSE,
    LAST_CASES,
    STEPS,
    assert_close,
    assert_same_bits,
    assert_same_on_all_ranks,
    backward,
    copy_gradients,
    full,
    network,
    sharded,
)
from fusedopt.checking.rows import ROWS

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer


def compare_wrapped(rank, wrap, inner=lambda model: model):
    """Every case, in a wrapped model: as torch's optimizer there, and as without a wrapper."""
    for case in LAST_CASES:
        model, plain = wrap(network()), network()
        optimizer = case.row.optimizer(model.parameters(), **case.options)
        plain_optimizer = case.row.optimizer(plain.parameters(), **case.options)
        if case.row.torch_optimizer:
            other = wrap(network())
            other_optimizer = case.row.torch_optimizer(other.parameters(), **case.options)
        for step in range(STEPS):
            backward(model, rank, step)
            copy_gradients(model, plain)
            optimizer.step()
            plain_optimizer.step()
            assert_same_bits(inner(model), plain, case)
            if case.row.torch_optimizer:
                backward(other, rank, step)
                other_optimizer.step()
        if case.row.torch_optimizer:
            assert_close(model, optimizer, other, other_optimizer, case)
        yield case, model, optimizer, plain, plain_optimizer


def ddp(rank, world_size):
    """DistributedDataParallel, with gradients of its own and as views of its buckets."""
    for as_view in (False, True):

        def wrap(model, as_view=as_view):
            return DistributedDataParallel(model, gradient_as_bucket_view=as_view)

        for case, model, *_ in compare_wrapped(rank, wrap, lambda model: model.module):
            assert_same_on_all_ranks(model.module, case)


def fsdp(rank, world_size):
    """FSDP2, with uneven and empty shards."""
    mesh = init_device_mesh("cpu", (world_size,))
    sizes = [p.to_local().numel() for p in sharded(network(), mesh).parameters()]
    assert (0 in sizes) == (rank > 0), "the last layer's row is rank 0's"
    for case, model, optimizer, plain, plain_optimizer in compare_wrapped(
        rank, lambda model: sharded(model, mesh)
    ):
        if isinstance(optimizer, fusedopt.Nesterov):
            with optimizer.at_iterate(), plain_optimizer.at_iterate():
                assert_same_bits(model, plain, f"{case}, at the iterate")
            assert_same_bits(model, plain, f"{case}, back at the lookahead point")


def grad_scaler(rank, world_size):
    """An infinity in one rank's shard skips the step on all ranks."""
    mesh = init_device_mesh("cpu", (world_size,))
    for row in ROWS:
        model, plain = sharded(network(), mesh), network()
        optimizer, plain_optimizer = (row.optimizer(m.parameters()) for m in (model, plain))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            backward(model, rank, step, scaler)
            scale = scaler.get_scale()
            if step in (0, 2) and rank == 1:
                model.first.weight.grad.to_local().fill_(float("inf"))
            scaler.step(optimizer)
            scaler.update()
            if step not in (0, 2):
                assert scaler.get_scale() == scale
                copy_gradients(model, plain)  # unscaled in place, exactly: a power of two
                plain_optimizer.step()
            else:
                assert scaler.get_scale() == scale / 2
            assert_same_bits(model, plain, row.name)


def zero(rank, world_size):
    """ZeroRedundancyOptimizer, whose state dict is resumed by itself and by the plain class."""
    for case in LAST_CASES:
        for as_view in (False, True):
            ZeroCheck(case, as_view, rank).run()


class ZeroCheck:
    """One case under ZeroRedundancyOptimizer."""

    def __init__(self, case, as_view, rank):
        self.case, self.as_view, self.rank = case, as_view, rank

    def wrapped(self, model, optimizer_class):
        return ZeroRedundancyOptimizer(
            model.parameters(),
            optimizer_class=optimizer_class,
            parameters_as_bucket_view=self.as_view,
            **self.case.options,
        )

    def train(self, model, optimizer, steps):
        """Steps on the average of all ranks' gradients, as DDP computes it."""
        for step in steps:
            backward(model, self.rank, step)
            for p in model.parameters():
                dist.all_reduce(p.grad)
                p.grad /= dist.get_world_size()
            optimizer.step()

    def run(self):
        row, options = self.case.row, self.case.options
        model, plain, again = network(), network(), network()
        optimizer = self.wrapped(model, row.optimizer)
        plain_optimizer = row.optimizer(plain.parameters(), **options)
        self.train(model, optimizer, range(STEPS))
        self.train(plain, plain_optimizer, range(STEPS))
        assert_same_bits(model, plain, self.case)
        assert_same_on_all_ranks(model, self.case)
        if row.torch_optimizer:
            other = network()
            self.train(other, self.wrapped(other, row.torch_optimizer), range(STEPS))
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(p, q, **CLOSE, msg=lambda m: f"{self.case}: {m}")

        checkpoint = self.consolidated(optimizer)
        again.load_state_dict(model.state_dict())
        resumed = self.wrapped(again, row.optimizer)
        resumed.load_state_dict(copy.deepcopy(checkpoint))
        later = range(STEPS, STEPS + 2)
        self.train(model, optimizer, later)
        self.train(again, resumed, later)
        assert_same_bits(model, again, f"{self.case}, resumed")
        unwrapped = row.optimizer(plain.parameters())
        unwrapped.load_state_dict(checkpoint)
        self.train(plain, unwrapped, later)
        assert_same_bits(model, plain, f"{self.case}, resumed without the wrapper")

    def consolidated(self, optimizer):
        """The whole state dict, which only one rank has, on all ranks."""
        optimizer.consolidate_state_dict(to=1)
        stream = io.BytesIO()
        if self.rank == 1:
            torch.save(optimizer.state_dict(), stream)
        box = [stream.getvalue()]
        dist.broadcast_object_list(box, src=1)
        return torch.load(io.BytesIO(box[0]), weights_only=True)


def tensor_parallel(rank, world_size):
    """Gradients of replicated parameters arrive as parts of a sum; torch adds them up, too."""
    mesh = init_device_mesh("cpu", (world_size,))
    plan = {
        "0": SequenceParallel(),
        "1": ColwiseParallel(input_layouts=Shard(1)),
        "3": RowwiseParallel(output_layouts=Replicate()),
    }

    def train(optimizer_class):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.LayerNorm(6), torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
        ).double()
        parallelize_module(model, mesh, plan)
        optimizer = optimizer_class(model.parameters(), lr=0.1)
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            inputs = torch.randn(2, 2 * world_size, 6, generator=generator, dtype=torch.float64)
            optimizer.zero_grad()
            model(inputs[:, 2 * rank : 2 * rank + 2]).square().mean().backward()
            assert model[0].weight.grad.placements[0].is_partial()
            optimizer.step()
            assert model[0].weight.grad.placements[0].is_partial(), "gradients are left as they are"
        return model

    for row in ROWS:
        if row.torch_optimizer:
            model, other = train(row.optimizer), train(row.torch_optimizer)
            for p, q in zip(model.parameters(), other.parameters(), strict=True):
                torch.testing.assert_close(full(p), full(q), **CLOSE)
        else:
            model = train(row.optimizer)
        for name, p in model.named_parameters():
            if p.placements[0].is_replicate():
                whole = [torch.empty_like(p.to_local()) for _ in range(world_size)]
                dist.all_gather(whole, p.to_local().detach())
                assert all(torch.equal(whole[0], each) for each in whole), f"{row.name}: {name}"


def pending(rank, world_size):
    """Gradients that a collective is still computing; a parameter that is a sum is refused."""
    mesh = init_device_mesh("cpu", (world_size,))
    total = world_size * (world_size + 1) / 2

    def sum_on_its_way():
        result = all_reduce(torch.full((3,), 1.0 + rank), "sum", mesh)
        assert type(result) is AsyncCollectiveTensor
        return result

    param = torch.nn.Parameter(distribute_tensor(torch.ones(3), mesh, [Replicate()]))
    param.grad = DTensor.from_local(sum_on_its_way(), mesh, [Replicate()], run_check=False)
    assert type(param.grad._local_tensor) is AsyncCollectiveTensor
    fusedopt.SGD([param], lr=1.0).step()
    assert torch.equal(param.to_local(), torch.full((3,), 1.0 - total))

    param = torch.nn.Parameter(DTensor.from_local(torch.ones(3), mesh, [Partial()]))
    param.grad = DTensor.from_local(torch.ones(3), mesh, [Partial()])
    with pytest.raises(ValueError, match="pending sum"):
        fusedopt.SGD([param], lr=1.0).step()
    assert torch.equal(param.to_local(), torch.ones(3))


def placed_otherwise(rank, world_size):
    """Gradients whose elements are on other ranks than the parameter's, as torch steps them."""
    mesh = init_device_mesh("cpu", (2, world_size // 2))
    generator = torch.Generator().manual_seed(0)
    whole, whole_grad = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)

    def train(optimizer_class, placements):
        param = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0), Shard(1)]))
        optimizer = optimizer_class([param], lr=0.1)
        for _ in range(STEPS):
            param.grad = distribute_tensor(whole_grad, mesh, placements)
            optimizer.step()
            assert param.grad.placements == tuple(placements), "gradients are left as they are"
        return param

    for placements in ([Shard(1), Shard(0)], [Replicate(), Shard(0)], [Replicate(), Replicate()]):
        for row in ROWS:
            if row.torch_optimizer:
                expected = full(train(row.torch_optimizer, placements))
                torch.testing.assert_close(
                    full(train(row.optimizer, placements)), expected, **CLOSE
                )


def mixed(rank, world_size):
    """A DTensor beside a plain tensor, or placed otherwise than its parameter, is refused."""
    mesh = init_device_mesh("cpu", (world_size,))
    other_mesh = init_device_mesh("cpu", (1, world_size))

    def dtensor(placement, mesh=mesh):
        placements = [Replicate()] * (mesh.ndim - 1) + [placement]
        return distribute_tensor(torch.ones(4, 4), mesh, placements)

    def refuses(error, message, change):
        param = torch.nn.Parameter(dtensor(Shard(0)))
        param.grad = dtensor(Shard(0))
        optimizer = fusedopt.Adam([param], lr=0.1)
        optimizer.step()
        change(param, optimizer.state[param])
        before = param.to_local().clone()
        with pytest.raises(error, match=message):
            optimizer.step()
        assert torch.equal(param.to_local(), before)

    def other_state(state):
        return lambda _, states: states.update(exp_avg=state)

    def other_grad(param, _):
        param.grad = dtensor(Shard(0), other_mesh)

    refuses(ValueError, "placed", other_state(dtensor(Shard(1))))
    refuses(ValueError, "placed", other_state(dtensor(Replicate())))
    refuses(RuntimeError, "only the parameter", other_state(dtensor(Shard(0)).to_local()))
    refuses(ValueError, "its parameter on", other_grad)

    param = torch.ones(4, 4)
    optimizer = fusedopt.Adam([param], lr=0.1)
    param.grad = torch.ones(4, 4)
    optimizer.step()
    optimizer.state[param]["exp_avg"] = dtensor(Replicate())
    before = param.clone()
    with pytest.raises(RuntimeError, match="only its gradient or a state"):
        optimizer.step()
    assert torch.equal(param, before)
