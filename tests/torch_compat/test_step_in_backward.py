"""Steps in the backward pass: the bits of ordinary steps, without the memory of all gradients."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import warnings
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fusedopt
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES
from helpers import bits, snapshot

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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_every_case(case):
    plain, ordinary, released, optimizer, _ = both(
        lambda model: case.row.optimizer(groups_of(model), **case.options)
    )
    for step in range(STEPS):
        train(plain, ordinary, 1, step)
        optimizer.zero_grad()
        loss_of(released, step).backward()
        assert all(param.grad is None for param in released.parameters())
        optimizer.step()
        assert_same(ordinary, optimizer)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize(
    "storage", [s for s in STORAGES if s.options and s.param == s.grad], ids=str
)
def test_bits_however_states_are_stored(row, storage):
    """Random bits are those of the parameter's number, whichever is stepped first."""
    plain, ordinary, released, optimizer, _ = both(
        lambda model: row.optimizer(groups_of(model), **storage.options),
        lambda: Network(storage.param, 66),
    )
    train(plain, ordinary)
    train(released, optimizer)
    assert_same(ordinary, optimizer)


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.5**step),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1),
    ],
)
def test_schedulers(scheduler):
    plain, ordinary, released, optimizer, _ = both()
    schedulers = scheduler(ordinary), scheduler(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # step() of a scheduler before that of its optimizer
        for step in range(STEPS):
            train(plain, ordinary, 1, step)
            train(released, optimizer, 1, step)
            for each in schedulers:
                each.step()
    assert_same(ordinary, optimizer)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_accumulation(row):
    """Also of a parameter that the last micro-batch does not use, which step() updates."""
    plain, ordinary, released, optimizer, handle = both(
        lambda model: row.optimizer(groups_of(model), lr=0.01)
    )
    for step in range(STEPS):
        ordinary.zero_grad()
        optimizer.zero_grad()
        for micro_batch in range(3):
            loss_of(plain, step, micro_batch).backward()
        with handle.accumulating():
            for micro_batch in range(2):
                loss_of(released, step, micro_batch).backward()
        assert released.last.weight.grad is not None
        loss_of(released, step, 2).backward()
        assert (released.sometimes.grad is None) == (step % 2 == 0)
        ordinary.step()
        optimizer.step()
        assert_same(ordinary, optimizer)
        assert all(param.grad is None for param in released.parameters())


def test_clipping_of_each_parameter():
    def clip(param):
        torch.nn.utils.clip_grad_norm_(param, 0.1)

    plain, ordinary, released, optimizer, handle = both(clip=clip)
    for step in range(STEPS):
        loss_of(plain, step, 0).backward()
        loss_of(plain, step, 1).backward()
        for param in plain.parameters():
            if param.grad is not None:
                clip(param)
        with handle.accumulating():
            loss_of(released, step, 0).backward()
        loss_of(released, step, 1).backward()
        ordinary.step()
        optimizer.step()
        ordinary.zero_grad()
        assert_same(ordinary, optimizer)


def test_checkpointed_activations():
    class Checkpointed(Network):
        def forward(self, x, number=0):
            block = lambda y: torch.tanh(self.twice(y))  # noqa: E731
            x = checkpoint(block, x, use_reentrant=False)
            return self.last(checkpoint(block, x, use_reentrant=False))

    plain, ordinary, released, optimizer, _ = both(model=Checkpointed)
    train(plain, ordinary)
    train(released, optimizer)
    assert_same(ordinary, optimizer)


def test_a_reentrant_checkpoint_of_a_shared_parameter_is_refused():
    """Each of them is a backward pass of its own, after which the gradient is not complete."""

    class Reentrant(Network):
        def forward(self, x, number=0):
            block = lambda y: torch.tanh(self.twice(y))  # noqa: E731
            x = checkpoint(block, x.requires_grad_(), use_reentrant=True)
            return self.last(checkpoint(block, x, use_reentrant=True))

    *_, released, _, _ = both(model=Reentrant)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        loss_of(released, 0).backward()


def test_groups_added_and_parameters_unfrozen_later():
    def make(model):
        model.last.requires_grad_(False)
        return fusedopt.AdamW(model.twice.parameters(), lr=0.01, state_bits=16)

    plain, ordinary, released, optimizer, _ = both(make)
    for model, each in ((plain, ordinary), (released, optimizer)):
        train(model, each, 1, 0)
        each.add_param_group({"params": [*model.last.parameters()], "lr": 0.1})
        each.add_param_group({"params": [model.sometimes]})
        train(model, each, 2, 1)
        model.last.requires_grad_(True)
        train(model, each, 2, 3)
    assert_same(ordinary, optimizer)
    loss_of(released, 5).backward()
    assert all(param.grad is None for param in released.parameters())


def test_a_checkpoint_loaded_in_between():
    plain, ordinary, released, optimizer, _ = both()
    train(plain, ordinary)
    train(released, optimizer)
    saved = copy.deepcopy(ordinary.state_dict())
    train(plain, ordinary, 1, 9)
    train(released, optimizer, 1, 9)
    ordinary.load_state_dict(copy.deepcopy(saved))
    optimizer.load_state_dict(saved)
    train(plain, ordinary)
    train(released, optimizer)
    assert_same(ordinary, optimizer)


def test_remove_makes_the_optimizer_an_ordinary_one():
    plain, ordinary, released, optimizer, handle = both()
    train(plain, ordinary, 1)
    train(released, optimizer, 1)
    handle.remove()
    handle.remove()
    ordinary.zero_grad()
    loss_of(plain, 1).backward()
    loss_of(released, 1).backward()
    for param, other in zip(plain.parameters(), released.parameters(), strict=True):
        assert (param.grad is None) == (other.grad is None)
    ordinary.step(lambda: None)
    optimizer.step(lambda: None)
    assert_same(ordinary, optimizer)
    with fusedopt.step_in_backward(optimizer):
        train(released, optimizer, 1, 2)
    train(plain, ordinary, 1, 2)
    assert_same(ordinary, optimizer)
    assert not any(param._post_accumulate_grad_hooks for param in released.parameters())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_are_ordinary(copied):
    *_, released, optimizer, _ = both()
    train(released, optimizer)
    model, other = copied((released, optimizer))
    loss_of(model, 0).backward()
    assert model.last.weight.grad is not None
    train(released, optimizer, 1)
    other.step()
    assert_same(optimizer, other)


def test_hooks_of_step_fire_once():
    *_, released, optimizer, _ = both()
    calls = []
    optimizer.register_step_pre_hook(lambda *args: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *args: calls.append("post"))
    train(released, optimizer, 1)
    assert calls == ["pre", "post"]


def test_a_second_gradient_of_one_step_is_refused():
    *_, released, optimizer, _ = both()
    loss_of(released, 0).backward()
    before = [bits(param).copy() for param in released.parameters()]
    with pytest.raises(RuntimeError, match=r"group 1, parameter \d: has another gradient after"):
        loss_of(released, 1).backward()
    with pytest.raises(RuntimeError, match="has another gradient after it was updated"):
        optimizer.step()
    for param, was in zip(released.parameters(), before, strict=True):
        assert (bits(param) == was).all()
    optimizer.zero_grad()
    loss_of(released, 1).backward()


def test_a_graph_is_not_used_again():
    """Autograd notices that the parameters have changed."""
    *_, released, optimizer, _ = both()
    loss = loss_of(released, 0)
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_error_leaves_the_others_as_they_were():
    """What is refused names its place, and keeps its gradient."""
    *_, released, optimizer, _ = both()
    train(released, optimizer, 1)
    before = snapshot(optimizer)
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"parameter group 0.*lr"):
        loss_of(released, 0).backward()
    after = snapshot(optimizer)
    stepped = {place for place in before if before[place]["param"] != after[place]["param"]}
    assert stepped
    assert all(group == 1 for group, _ in stepped)
    left = [param for param in released.parameters() if param.grad is not None]
    assert left
    assert {*map(id, left)} <= {*map(id, optimizer.param_groups[0]["params"])}
    optimizer.param_groups[0]["lr"] = 0.01
    optimizer.step()
    assert all(param.grad is None for param in released.parameters())


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph")
def test_what_needs_all_gradients_is_refused():
    model = Network()
    for option in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
        optimizer = fusedopt.AdamW(model.parameters(), **option)
        with pytest.raises(RuntimeError, match=next(iter(option))):
            fusedopt.step_in_backward(optimizer)
    optimizer = fusedopt.AdamW(model.parameters())
    with fusedopt.step_in_backward(optimizer):
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="closure"):
            optimizer.step(lambda: pytest.fail("it is called"))
        optimizer.max_grad_norm = 1.0
        with pytest.raises(RuntimeError, match="max_grad_norm"):
            loss_of(model, 0).backward()
        optimizer.max_grad_norm = None
        optimizer.zero_grad()
        with pytest.raises(RuntimeError, match="create_graph"):
            loss_of(model, 0).backward(create_graph=True)
        optimizer.zero_grad()
        assert snapshot(optimizer) == before
        optimizer.found_inf = torch.tensor(0.0)
        with pytest.raises(RuntimeError, match="gradient scaler"):
            loss_of(model, 0).backward()


@pytest.mark.parametrize("fused", [None, False])
def test_a_gradient_scaler_is_refused(fused):
    model = Network()
    optimizer = fusedopt.AdamW(model.parameters(), fused=fused)
    fusedopt.step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match="gradient scaler"):
        scaler.step(optimizer)


def test_other_optimizers_and_a_second_handle_are_refused():
    class Own(fusedopt.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    model = Network()
    with pytest.raises(TypeError, match=r"torch\.optim"):
        fusedopt.step_in_backward(torch.optim.AdamW(model.parameters()))
    with pytest.raises(NotImplementedError, match="Own has a step"):
        fusedopt.step_in_backward(Own(model.parameters()))
    optimizer = fusedopt.AdamW(model.parameters())
    fusedopt.step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="already"):
        fusedopt.step_in_backward(optimizer)


def test_a_parameter_taken_out_of_the_optimizer_is_refused():
    *_, released, optimizer, _ = both()
    assert optimizer.param_groups[1]["params"].pop(1) is released.last.weight
    with pytest.raises(RuntimeError, match="taken out"):
        loss_of(released, 0).backward()


def test_nothing_is_kept_alive():
    def make():
        *_, released, optimizer, handle = both()
        train(released, optimizer)
        return [weakref.ref(each) for each in (released, optimizer, handle)]

    alive = make()
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def peak(run):
    """Bytes of tensors that are allocated at once while something runs, beyond those before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


def test_gradients_never_exist_at_once():
    """A training step needs the memory of one gradient or two in place of all."""
    layers, width = 12, 256
    one = width * width * 4

    class Deep(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            linears = (torch.nn.Linear(width, width, bias=False) for _ in range(layers))
            self.layers = torch.nn.Sequential(*linears)

        def forward(self, x, number):
            return self.layers(x)

    plain, ordinary, released, optimizer, _ = both(
        lambda model: fusedopt.AdamW(model.parameters()), Deep
    )
    train(plain, ordinary, 1)
    ordinary.zero_grad()
    train(released, optimizer, 1)
    with_all = peak(lambda: train(plain, ordinary, 1, 1))
    with_one = peak(lambda: train(released, optimizer, 1, 1))
    assert with_all >= layers * one
    assert with_one <= 3 * one
    assert_same(ordinary, optimizer)
