"""What the processes of tests/test_distributed.py run: checks on gloo, each in a group of ranks.

Every function is called as ``function(rank, world_size, *args)`` in a process of its own.
"""

from __future__ import annotations

import copy
import io
import os
import warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fusedopt
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from helpers import bits

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch.distributed.optim import ZeroRedundancyOptimizer

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


def given_gradients(model, step):
    """Gradients that do not depend on the number of ranks, not even in their rounding."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        whole = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


def classes_of(case):
    """Whose optimizer a checkpoint is of, and its class."""
    return {
        "fusedopt": case.row.optimizer,
        **({"torch": case.row.torch_optimizer} if case.row.torch_optimizer else {}),
    }


def train_with_given_gradients(model, optimizer, steps):
    for step in steps:
        given_gradients(model, step)
        optimizer.step()


def whole_parameters(model):
    return [full(p).detach().clone() for p in model.parameters()]


def state_of(model, optimizer):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def save(rank, world_size, folder):
    """Writes a checkpoint of every case in mid-training, and where the training ends."""
    mesh = init_device_mesh("cpu", (world_size,))
    states, trained, ends = {}, [], {}
    for case in LAST_CASES:
        for of, optimizer_class in classes_of(case).items():
            model = sharded(network(), mesh)
            optimizer = optimizer_class(model.parameters(), **case.options)
            train_with_given_gradients(model, optimizer, range(3))
            states[f"{of} {case}"] = state_of(model, optimizer)
            trained.append((f"{of} {case}", model, optimizer))
    dcp.save(states, checkpoint_id=folder / "checkpoint")
    for key, model, optimizer in trained:
        train_with_given_gradients(model, optimizer, range(3, 6))
        ends[key] = whole_parameters(model)
    if rank == 0:
        torch.save(ends, folder / "ends.pt")


def load(rank, world_size, folder):
    """Resumes every case on another number of ranks, ours also from torch's and for torch's."""
    mesh = init_device_mesh("cpu", (world_size,))
    states, resumed = {}, {}
    pairs = [
        (case, of, by)
        for case in CASES
        for of in classes_of(case)
        for by in classes_of(case)
        if "fusedopt" in (of, by)
    ]
    ends = torch.load(folder / "ends.pt")
    for by in ("fusedopt", "torch"):  # each reads the whole checkpoint
        for case, of in ((case, of) for case, of, reader in pairs if reader == by):
            torch.manual_seed(1)
            model = sharded(Uneven().double(), mesh)
            optimizer = classes_of(case)[by](model.parameters(), **{**case.options, "lr": 123.0})
            states[f"{of} {case}"] = state_of(model, optimizer)
            resumed[f"{of} {case}"] = model, optimizer
        dcp.load(states, checkpoint_id=folder / "checkpoint")
        for key, (model, optimizer) in resumed.items():
            set_model_state_dict(model, states[key]["model"])
            set_optimizer_state_dict(model, optimizer, states[key]["optimizer"])
            train_with_given_gradients(model, optimizer, range(3, 6))
            for p, end in zip(whole_parameters(model), ends[key], strict=True):
                if key.startswith("fusedopt") and by == "fusedopt":
                    assert np.array_equal(bits(p), bits(end)), key
                else:
                    torch.testing.assert_close(p, end, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
        states.clear()
        resumed.clear()
