"""from_torch: a live optimizer changes its class, and nobody who holds it notices."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from helpers import bits, snapshot

TORCH_CASES = [case for case in CASES if case.row.torch_optimizer]
TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]
each_row = pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 5), (700,), ())
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def set_grads(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def steps(optimizer, count, seed=1):
    for step in range(count):
        set_grads([p for group in optimizer.param_groups for p in group["params"]], seed + step)
        optimizer.step()


def assert_same_bits(ours, theirs):
    for p, q in zip(ours, theirs, strict=True):
        assert np.array_equal(bits(p), bits(q))


@pytest.fixture
def native_steps(monkeypatch):
    """The rules of the native steps that were taken."""
    rules = []
    step = fusedopt._native.step
    monkeypatch.setattr(
        fusedopt._native, "step", lambda rule, *args: (rules.append(rule), step(rule, *args))[1]
    )
    return rules


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
@pytest.mark.parametrize("before", [0, 3])
def test_goes_on_as_ours_with_the_loaded_state(case, before):
    params = parameters()
    optimizer = case.row.torch_optimizer(params, **case.options)
    steps(optimizer, before)
    others = copy.deepcopy(params)
    loaded = case.row.optimizer(others)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    assert fusedopt.from_torch(optimizer) is optimizer
    assert type(optimizer) is case.row.optimizer
    steps(optimizer, 4, seed=9)
    steps(loaded, 4, seed=9)
    assert_same_bits(params, others)
    for p, q in zip(params, others, strict=True):
        mine, expected = optimizer.state[p], loaded.state[q]
        assert mine.keys() == expected.keys()
        assert_same_bits(mine.values(), expected.values())
    assert optimizer.state_dict()["param_groups"] == loaded.state_dict()["param_groups"]
    assert optimizer.defaults == case.row.torch_optimizer(parameters(), **case.options).defaults


@each_row
def test_everything_stays_the_object_it_was(row):
    params = parameters()
    optimizer = row.torch_optimizer([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}])
    steps(optimizer, 2)
    groups, state, defaults = optimizer.param_groups, optimizer.state, optimizer.defaults
    parts = [groups[0], groups[1], groups[1]["params"], *state.values()]
    tensors = [tensor for values in state.values() for tensor in values.values()]
    fusedopt.from_torch(optimizer)
    assert optimizer.param_groups is groups
    assert optimizer.state is state
    assert optimizer.defaults is defaults
    now = [groups[0], groups[1], groups[1]["params"], *state.values()]
    assert all(a is b for a, b in zip(now, parts, strict=True))
    now = [tensor for values in state.values() for tensor in values.values()]
    assert all(a is b for a, b in zip(now, tensors, strict=True))


def test_ours_is_returned_as_it_is():
    optimizer = fusedopt.Nesterov(parameters())
    assert fusedopt.from_torch(optimizer) is optimizer
    assert type(optimizer) is fusedopt.Nesterov


def schedulers_of(optimizer):
    return (
        torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5),
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    )


def scheduled_steps(optimizer, schedulers, count, seed=1):
    for step in range(count):
        steps(optimizer, 1, seed=seed + step)
        for scheduler in schedulers:
            scheduler.step()  # warns where step was not called, or has been replaced


@each_row
@pytest.mark.parametrize("before", [0, 3])
def test_schedulers_go_on(row, before, native_steps):
    """They hold the optimizer, and have put a wrapper around torch's step into the object."""
    params = parameters()
    optimizer = row.torch_optimizer(params, lr=0.1)
    schedulers = schedulers_of(optimizer)
    scheduled_steps(optimizer, schedulers, before)
    others = copy.deepcopy(params)
    loaded = row.optimizer(others)
    loaded_schedulers = schedulers_of(loaded)
    for scheduler, saved in zip(loaded_schedulers, schedulers, strict=True):
        scheduler.load_state_dict(saved.state_dict())
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))

    fusedopt.from_torch(optimizer)
    scheduled_steps(optimizer, schedulers, 5, seed=9)
    scheduled_steps(loaded, loaded_schedulers, 5, seed=9)
    assert len(native_steps) == 10
    assert_same_bits(params, others)
    assert optimizer.param_groups[0]["lr"] == loaded.param_groups[0]["lr"]
    assert optimizer.param_groups[0]["lr"] < 0.1


def test_scheduler_still_notices_that_step_was_not_called():
    optimizer = torch.optim.Adam(parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    fusedopt.from_torch(optimizer)
    with pytest.warns(UserWarning, match=r"before `optimizer.step\(\)`"):
        scheduler.step()


def test_scheduler_after_the_conversion(native_steps):
    optimizer = fusedopt.from_torch(torch.optim.Adam(parameters(), lr=0.5))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10)
    steps(optimizer, 1)
    scheduler.step()
    assert len(native_steps) == 1


def test_a_tracked_step_keeps_no_optimizer_alive():
    import gc
    import weakref

    optimizer = torch.optim.SGD(parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    reference = weakref.ref(fusedopt.from_torch(optimizer))
    gc.disable()
    try:
        del optimizer
        assert reference() is None
    finally:
        gc.enable()


@each_row
def test_hooks_go_on_and_can_be_removed(row):
    optimizer = row.torch_optimizer(parameters())
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        optimizer.register_state_dict_pre_hook(lambda *_: calls.append("save pre")),
        optimizer.register_state_dict_post_hook(lambda *_: calls.append("save post")),
        optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load pre")),
        optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("load post")),
    ]
    fusedopt.from_torch(optimizer)
    steps(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    expected = ["pre", "post", "save pre", "save post", "load pre", "load post"]
    assert calls == expected
    for handle in handles:
        handle.remove()
    steps(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == expected


@each_row
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("moment", ["before", "unscaled"])
def test_grad_scaler_goes_on(row, fused, moment, native_steps):
    """Also where it has unscaled the gradients, which it remembers by the optimizer's id."""
    if fused and "fused" not in row.torch_optimizer([torch.zeros(1)]).defaults:
        fused = None  # an option that torch does not have
    options = {"fused": True} if fused else {}
    results = []
    for convert in (True, False):
        params = parameters()
        optimizer = (row.torch_optimizer if convert else row.optimizer)(params, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(4):
            optimizer.zero_grad()
            factor = float("inf") if step == 2 else 1.0
            scaler.scale(sum((p * factor).sum() for p in params)).backward()
            if moment == "before" and convert:
                fusedopt.from_torch(optimizer)
            scaler.unscale_(optimizer)
            if moment == "unscaled" and convert:
                fusedopt.from_torch(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append((params, scaler.get_scale()))
    assert results[0][1] == results[1][1] == 512.0
    assert_same_bits(results[0][0], results[1][0])
    assert len(native_steps) == 8


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("supports", [False, True])
def test_who_unscales_is_kept(fused, supports):
    """What somebody has said of the object goes before what follows from its groups."""
    optimizer = torch.optim.Adam(parameters(), fused=fused)
    optimizer._step_supports_amp_scaling = supports
    fusedopt.from_torch(optimizer)
    assert optimizer._step_supports_amp_scaling is supports
    optimizer._step_supports_amp_scaling = not supports
    assert optimizer._step_supports_amp_scaling is not supports


def test_buffer_that_is_none():
    """As torch's checkpoints have it of a momentum that has not been used yet."""
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    for param in params:
        optimizer.state[param]["momentum_buffer"] = None
    fusedopt.from_torch(optimizer)
    set_grads(params, 1)
    optimizer.step()
    for param in params:
        assert np.array_equal(bits(optimizer.state[param]["momentum_buffer"]), bits(param.grad))


@each_row
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_converted_can_be_copied(row, way):
    params = parameters()
    optimizer = row.torch_optimizer(params)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    steps(optimizer, 2)
    fusedopt.from_torch(optimizer)
    copied = (
        copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    )
    assert type(copied) is row.optimizer
    steps(optimizer, 2, seed=5)
    steps(copied, 2, seed=5)
    assert_same_bits(params, copied.param_groups[0]["params"])


def test_closure_profiler_and_groups_added_later(native_steps):
    params = parameters()
    optimizer = torch.optim.Adam(params[:2])
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    fusedopt.from_torch(optimizer)
    optimizer.add_param_group({"params": params[2:], "lr": 0.5})
    set_grads(params, 1)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        assert optimizer.step(closure=lambda: 42.0) == 42.0
        optimizer.zero_grad()
    names = [event.key for event in profile.key_averages()]
    assert names.count("Optimizer.step#Adam.step") == 1
    assert "Optimizer.zero_grad#Adam.zero_grad" in names
    assert native_steps == ["adam"]
    with pytest.raises(NotImplementedError, match="parameter group 2: differentiable=True"):
        optimizer.add_param_group({"params": parameters(), "differentiable": True})


class Derived(torch.optim.Adam):
    pass


class Overriding(torch.optim.SGD):
    def step(self, closure=None):
        raise InterruptedError


def replaced_step():
    optimizer = torch.optim.SGD(parameters())
    optimizer.step = lambda closure=None: None
    return optimizer


def replaced_step_over_a_schedulers():
    import functools

    optimizer = torch.optim.SGD(parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step = functools.wraps(optimizer.step)(lambda closure=None: None)
    return optimizer


def differentiable():
    params = parameters()
    optimizer = torch.optim.Adam(params[:1])
    optimizer.add_param_group({"params": params[1:], "differentiable": True})
    return optimizer


def state_of_integers():
    params = parameters()
    optimizer = torch.optim.Adam([{"params": params[:1]}, {"params": params[1:]}])
    steps(optimizer, 1)
    optimizer.state[params[2]]["exp_avg"] = torch.zeros_like(params[2], dtype=torch.int32)
    return optimizer


REFUSALS = {
    "a class that we do not have": (
        lambda: torch.optim.NAdam(parameters()), TypeError, "not of class .*NAdam"),
    "a derived class": (lambda: Derived(parameters()), TypeError, "not of class .*Derived"),
    "a step of its own": (lambda: Overriding(parameters()), TypeError, "not of class .*Overriding"),
    "not an optimizer": (lambda: torch.nn.Linear(1, 1), TypeError, "not of class .*Linear"),
    "a step replaced": (replaced_step, TypeError, "step of this SGD has been replaced"),
    "a scheduler's step replaced": (
        replaced_step_over_a_schedulers, TypeError, "step of this SGD has been replaced"),
    "differentiable": (
        differentiable, NotImplementedError, "parameter group 1: differentiable=True"),
    "complex": (
        lambda: torch.optim.SGD([torch.zeros(2), torch.zeros(2, dtype=torch.complex64)]),
        NotImplementedError, "parameter group 0, parameter 1: complex"),
    "negated": (
        lambda: torch.optim.SGD([torch._neg_view(torch.ones(3)).requires_grad_()]),
        ValueError, "parameter group 0, parameter 0: is a negated view"),
    "state of integers": (
        state_of_integers, ValueError,
        r"parameter group 1, parameter 1: exp_avg has dtype torch.int32, which no kernel"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_and_left_as_it_was(name):
    construct, exception, message = REFUSALS[name]
    optimizer = construct()
    before = dict(vars(optimizer)), type(optimizer)
    with pytest.raises(exception, match=message):
        fusedopt.from_torch(optimizer)
    assert (dict(vars(optimizer)), type(optimizer)) == before


def test_torchs_classes_are_left_alone():
    """The class of one object changes, not torch's."""
    converted, other = (torch.optim.Adam(parameters()) for _ in range(2))
    step = torch.optim.Adam.step
    fusedopt.from_torch(converted)
    assert torch.optim.Adam.step is step
    assert type(other) is torch.optim.Adam
    steps(other, 1)
    before = snapshot(other)
    steps(converted, 1)
    assert snapshot(other) == before
