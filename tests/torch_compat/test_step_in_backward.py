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
from distributed_in_backward import fsdp
from in_backward_helpers import STEPS, Network, assert_same, both, groups_of, loss_of, train
from torch.utils.checkpoint import checkpoint

import fusedopt
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES


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


def test_shards_of_fsdp(run):
    run(fsdp, 2)


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
