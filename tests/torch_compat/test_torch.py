"""What torch.optim promises: signatures, trajectories, state, hooks, schedulers, autograd."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from fusedopt.optimizers.clipping import DEFAULTS as CLIPPING
from fusedopt.optimizers.epilogue import DEFAULTS as EPILOGUE
from fusedopt.optimizers.storage import DEFAULTS as STORAGE
from helpers import bits, scaled_step

TORCH_CASES = [case for case in CASES if case.row.torch_optimizer]
TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.Flatten(), torch.nn.Linear(108, 7), torch.nn.Tanh(),
        torch.nn.Linear(7, 2),
    )  # fmt: skip


def train(model, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        inputs = torch.randn(16, 1, 8, 8, generator=generator)
        optimizer.zero_grad()
        loss = (model(inputs) - inputs.mean((1, 2, 3), keepdim=False)[:, None]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_same_training(a, b, rtol=2e-4):
    """Two trajectories that differ by rounding only: the formulas are the same."""
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_signature_is_torchs(row):
    ours = inspect.signature(row.optimizer).parameters
    theirs = inspect.signature(row.torch_optimizer).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert set(ours) - set(theirs) <= {"fused", "capturable", *STORAGE, *EPILOGUE, *CLIPPING}
    for name, default in {**STORAGE, **EPILOGUE, **CLIPPING}.items():
        assert ours[name].kind == inspect.Parameter.KEYWORD_ONLY
        assert ours[name].default == default
    for name, parameter in theirs.items():
        assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_foreach_and_fused_have_no_effect(row, options):
    results = []
    for kwargs in ({}, options):
        model = network()
        train(model, row.optimizer(model.parameters(), **kwargs), 3)
        results.append([bits(p) for p in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_trajectory_state_and_groups_of_torch(case):
    ours, theirs = network().double(), network().double()
    our_optimizer = case.row.optimizer(ours.parameters(), **case.options)
    their_optimizer = case.row.torch_optimizer(theirs.parameters(), **case.options)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            q.grad = p.grad.clone()
        our_optimizer.step()
        their_optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
        assert our_optimizer.state[p].keys() == their_optimizer.state[q].keys()
        for name, value in their_optimizer.state[q].items():
            mine = our_optimizer.state[p][name]
            torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-12)
            assert mine.dtype == value.dtype
            assert mine.stride() == value.stride()
            assert not mine.requires_grad
    for mine, group in zip(our_optimizer.param_groups, their_optimizer.param_groups, strict=True):
        assert {k: v for k, v in mine.items() if k != "params"} == {
            k: v for k, v in group.items() if k != "params"
        }


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
@pytest.mark.parametrize("direction", ["torch to ours", "ours to torch"])
def test_checkpoints_change_hands_in_mid_training(case, direction):
    classes = [case.row.torch_optimizer, case.row.optimizer]
    first, second = classes if direction == "torch to ours" else reversed(classes)
    whole = network()
    train(whole, optimizer := case.row.torch_optimizer(whole.parameters(), **case.options), 5)
    train(whole, optimizer, 5, seed=2)

    model = network()
    train(model, optimizer := first(model.parameters(), **case.options), 5)
    stream = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, stream)
    stream.seek(0)
    checkpoint = torch.load(stream, weights_only=True)
    resumed = network()
    resumed.load_state_dict(checkpoint["model"])
    optimizer = second(resumed.parameters(), lr=123.0)
    optimizer.load_state_dict(checkpoint["optimizer"])
    train(resumed, optimizer, 5, seed=2)
    assert_same_training(resumed, whole)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("way", ["state_dict", "deepcopy", "pickle"])
def test_resuming_is_exact(case, way):
    model = network()
    optimizer = case.row.optimizer(model.parameters(), **case.options)
    train(model, optimizer, 4)
    if way == "state_dict":
        resumed = copy.deepcopy(model)
        resumed_optimizer = case.row.optimizer(resumed.parameters())
        resumed_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    elif way == "deepcopy":
        resumed, resumed_optimizer = copy.deepcopy((model, optimizer))
    else:
        resumed, resumed_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, 4, seed=5)
    train(resumed, resumed_optimizer, 4, seed=5)
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        assert np.array_equal(bits(p), bits(q))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_closure(row):
    param = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = row.optimizer([param])

    def closure():
        optimizer.zero_grad()
        assert torch.is_grad_enabled()
        loss = param.square().sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure=closure)
    assert loss.item() == 9.0
    assert param.item() != 3.0
    assert optimizer.step() is None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_hooks_fire_once(row):
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = row.optimizer([param])
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    before = bits(param).copy()
    optimizer.step()
    assert calls == ["global pre", "pre", "post", "global post"]
    assert not np.array_equal(bits(param), before)
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(calls) == 4


def test_pre_hook_may_change_the_arguments():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = fusedopt.SGD([param])
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: ((opt, lambda: 42.0), {}))
    assert optimizer.step() == 42.0


def test_profiler_event():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = fusedopt.AdamW([param])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
        optimizer.zero_grad()
    names = [event.key for event in profile.key_averages()]
    assert "Optimizer.step#AdamW.step" in names
    assert "Optimizer.zero_grad#AdamW.zero_grad" in names


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_autograd_notices_the_update(row):
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    version = param._version
    out = (param * param).sum()
    row.optimizer([param]).step()
    assert param._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_autograd_notices_all_that_is_written():
    """States and their count, and a gradient where it is divided by a scale."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    states = list(optimizer.state[param].values())
    for scale in (None, 2.0):
        versions = [state._version for state in states]
        of_grad = param.grad._version
        scaled_step(optimizer, scale)
        assert [state._version for state in states] == [version + 1 for version in versions]
        assert param.grad._version == of_grad + (scale is not None)


def test_gradients_are_left_as_they_were():
    for row in ROWS:
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.tensor([1.0, -2.0, 3.0])
        grad, version = param.grad, param.grad._version
        row.optimizer([param], maximize=True, weight_decay=0.5).step()
        assert param.grad is grad
        assert grad._version == version
        assert torch.equal(grad, torch.tensor([1.0, -2.0, 3.0]))


@pytest.mark.parametrize("fused", [None, True, False])
def test_grad_scaler_on_the_cpu(fused):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = fusedopt.Adam([param], lr=0.5, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    expected = torch.nn.Parameter(torch.ones(3))
    expected_optimizer = fusedopt.Adam([expected], lr=0.5)
    for factor in (float("inf"), 1.0, 2.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if factor != float("inf"):
            expected.grad = torch.full((3,), factor)
            expected_optimizer.step()
        else:
            assert not optimizer.state
    assert np.array_equal(bits(param), bits(expected))


def test_subclass_of_torchs_class():
    for row in TORCH_ROWS:
        assert issubclass(row.optimizer, row.torch_optimizer)
    assert issubclass(fusedopt.AdamW, fusedopt.Adam)


def test_adamw_keeps_decoupled_decay_on_load():
    params = [torch.nn.Parameter(torch.ones(2))]
    optimizer = fusedopt.AdamW(params)
    optimizer.load_state_dict(torch.optim.Adam(params).state_dict())
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_profiler_and_hooks_change_no_bits():
    results = []
    for observed in (False, True):
        model = network()
        optimizer = fusedopt.Nesterov(model.parameters(), lr=0.01)
        if observed:
            optimizer.register_step_post_hook(lambda *_: None)
        train(model, optimizer, 3)
        results.append([bits(p) for p in model.parameters()])
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))
