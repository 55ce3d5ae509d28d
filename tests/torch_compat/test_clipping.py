"""max_grad_norm and skip_nonfinite: torch's unscaling, clipping and stepping in one."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulation
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from helpers import bits, content, scaled_step, snapshot

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
ROWS_OF_TORCH = [row for row in ROWS if row.torch_optimizer]


def named(rows):
    return {"argvalues": rows, "ids": [row.name for row in rows]}


def params_and_grads(dtype=torch.float32, sizes=(5, 3, 1000)):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size).to(dtype)) for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape).to(dtype)
    return params


# Beside torch


@pytest.mark.parametrize("scale", [None, 256.0])
@pytest.mark.parametrize("row", **named(ROWS_OF_TORCH))
def test_trajectory_of_torchs_sequence_in_float64(row, scale):
    """Both differ by roundings of 1e-16: of the norm, of the factor, and of every step."""
    runs = []
    for ours in (True, False):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (7, 100, 2000)]
        options = {**row.usual, "lr": row.lr}
        if ours:
            optimizer = row.optimizer(params, **options, max_grad_norm=2.0, skip_nonfinite=True)
        else:
            optimizer = row.torch_optimizer(params, **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        norms, skips = [], []
        for step in range(40):
            optimizer.zero_grad()
            loss = sum((param.sin() * (step % 7) / 7).sum() for param in params)
            scaler.scale(loss).backward()
            if step in (0, 11, 12):
                params[1].grad[3] = math.inf if step < 12 else math.nan
            before = params[2].detach().clone()
            if ours:
                scaler.step(optimizer)
                norms.append(optimizer.grad_norm)
                assert optimizer.skipped == torch.equal(before, params[2].detach()) or step % 7 == 0
            else:
                scaler.unscale_(optimizer)
                norms.append(torch.nn.utils.clip_grad_norm_(params, 2.0))
                if scale is not None or norms[-1].isfinite():
                    scaler.step(optimizer)
            scaler.update()
            skips.append(not math.isfinite(norms[-1]))
        runs.append((params, norms, skips, scaler.get_scale(), optimizer.state))
    (ours, our_norms, our_skips, our_scale, our_state), theirs = runs[0], runs[1]
    assert our_skips == theirs[2]
    assert sum(our_skips) == 3
    assert our_scale == theirs[3]
    for mine, other in zip(our_norms, theirs[1], strict=True):
        torch.testing.assert_close(mine, other.double(), rtol=1e-14, atol=0, equal_nan=True)
    for p, q in zip(ours, theirs[0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)
        assert our_state[p].keys() == theirs[4][q].keys()
        if "step" in our_state[p]:
            assert our_state[p]["step"] == theirs[4][q]["step"] == 37


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_gradients_that_are_clipped_as_torch_clips_them(dtype):
    """A step of plain SGD shows the clipped gradient.

    torch rounds the norm of each tensor, and the total, to the dtype: two roundings of half a unit,
    beside n/2 units of float32 at most for a sum of n squares. Its factor has two more roundings,
    and the product one, as ours.
    """
    sizes = (5, 300, 1000)
    params = params_and_grads(dtype, sizes)
    grads = [param.grad.clone() for param in params]
    for param in params:
        param.data.zero_()
    optimizer = fusedopt.SGD(params, lr=1.0, maximize=True, max_grad_norm=1.0)
    optimizer.step()
    norm = torch.nn.utils.clip_grad_norm_(params, 1.0)
    eps = torch.finfo(dtype).eps
    of_sum = max(sizes) * torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    relative = 3 * eps + of_sum
    torch.testing.assert_close(optimizer.grad_norm, norm.double(), rtol=2 * eps + of_sum, atol=0)
    for param, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(param.detach(), param.grad, rtol=relative, atol=0)
        assert (param.detach().abs() < grad.abs()).all()


# What is skipped


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("row", **named(ROWS))
def test_skipped_step_changes_nothing(row, steps, special):
    """Not even in the first step, which creates no state then."""
    for max_norm in (None, 1.0):
        params = params_and_grads()
        optimizer = row.optimizer(params, skip_nonfinite=True, max_grad_norm=max_norm)
        for _ in range(steps):
            optimizer.step()
            assert not optimizer.skipped
        params[2].grad[-1] = special
        before = snapshot(optimizer)
        states = {param: dict(state) for param, state in optimizer.state.items()}
        optimizer.step()
        assert snapshot(optimizer) == before
        assert {param: dict(state) for param, state in optimizer.state.items()} == states
        assert optimizer.skipped
        assert not optimizer.grad_norm.isfinite()
        params[2].grad[-1] = 0.0
        optimizer.step()
        assert not optimizer.skipped
        assert snapshot(optimizer) != before


@pytest.mark.parametrize("unscales_first", [False, True])
def test_with_a_scaler(unscales_first):
    """The norm is of the unscaled gradients; what the scaler skips is skipped, and said."""
    params = params_and_grads()
    optimizer = fusedopt.AdamW(params, max_grad_norm=0.5)
    plain = [torch.nn.Parameter(param.detach().clone()) for param in params]
    beside = fusedopt.AdamW(plain, max_grad_norm=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(6):
        scale = scaler.get_scale()
        scaler.scale(torch.zeros(()))
        for param, other in zip(params, plain, strict=True):
            other.grad = torch.randn(param.shape)
            param.grad = other.grad * scale  # a power of two
        if step == 3:
            params[1].grad[0] = math.inf
        before = snapshot(optimizer)
        if unscales_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.skipped == (step == 3)
        if step == 3:
            assert optimizer.grad_norm == math.inf
            after = snapshot(optimizer)
            for key, entry in before.items():
                assert {**after[key], "grad": None} == {**entry, "grad": None}
            assert scaler.get_scale() == scale / 2
            continue
        beside.step()
        assert content(optimizer.grad_norm) == content(beside.grad_norm)
        for param, other in zip(params, plain, strict=True):
            assert np.array_equal(bits(param), bits(other))
            assert np.array_equal(bits(param.grad), bits(other.grad))


def test_a_scaled_gradient_that_overflows_is_found_without_the_scaler():
    """``found_inf`` may be wrong, or of another optimizer's gradients only."""
    params = params_and_grads()
    optimizer = fusedopt.Adagrad(params, skip_nonfinite=True)
    params[0].grad[0] = math.nan
    before = snapshot(optimizer)
    scaled_step(optimizer, 2.0)
    assert optimizer.skipped
    assert snapshot(optimizer) == before


def test_without_skipping_an_infinity_goes_where_torch_lets_it_go():
    """Its norm is infinite, so everything else is multiplied by 0, and it becomes NaN."""
    for special in (math.inf, math.nan):
        params = params_and_grads()
        params[0].grad[0] = special
        for param in params:
            param.data.zero_()
        optimizer = fusedopt.SGD(params, lr=1.0, max_grad_norm=1.0)
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for param in params:
            torch.testing.assert_close(-param.detach(), param.grad, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("special", [1.0, math.inf, math.nan])
def test_an_infinite_maximum_measures_and_changes_nothing(special):
    params = params_and_grads()
    params[0].grad[0] = special
    twins = copy.deepcopy(params)
    for twin, param in zip(twins, params, strict=True):
        twin.grad = param.grad.clone()
    optimizer = fusedopt.Adam(params, max_grad_norm=math.inf)
    optimizer.step()
    fusedopt.Adam(twins).step()
    for param, twin in zip(params, twins, strict=True):
        assert np.array_equal(bits(param), bits(twin))
    assert optimizer.grad_norm.isfinite() == math.isfinite(special)


# The options


@pytest.mark.parametrize("engine", [contextlib.nullcontext, emulation])
@pytest.mark.parametrize(("size", "value"), [(1000, 1e153), (3, 1e200), (70_000, 1e154)])
def test_a_finite_gradient_is_stepped_although_its_norm_is_infinite(size, value, engine):
    """In float64 a sum of squares, or a square, is too large for a double."""
    param = torch.nn.Parameter(torch.zeros(size, 2, dtype=torch.float64)[:, 0])
    optimizer = fusedopt.SGD([param], lr=1 / value, skip_nonfinite=True)
    param.grad = torch.full((size,), value, dtype=torch.float64)
    with engine():
        optimizer.step()
        assert not optimizer.skipped
        assert optimizer.grad_norm.isinf()
        assert (param == -1).all()
        param.grad[1] = math.inf
        optimizer.step()
        assert optimizer.skipped
        assert (param == -1).all()


def test_a_step_that_measures_nothing_says_nothing():
    (param,) = params_and_grads(sizes=(5,))
    param.grad[0] = math.nan
    optimizer = fusedopt.SGD([param], lr=0.1, skip_nonfinite=True)
    optimizer.step()
    assert optimizer.skipped
    optimizer.skip_nonfinite = False
    optimizer.step()
    assert optimizer.skipped is optimizer.grad_norm is None


def test_norm_and_skip_are_tensors_of_no_dimensions():
    params = params_and_grads()
    optimizer = fusedopt.SGD(params)
    optimizer.step()
    assert optimizer.grad_norm is None
    assert optimizer.skipped is None
    assert optimizer.max_grad_norm is None
    assert optimizer.skip_nonfinite is False
    optimizer.max_grad_norm = 2
    optimizer.step()
    assert optimizer.grad_norm.shape == optimizer.skipped.shape == ()
    assert optimizer.grad_norm.dtype == torch.float64
    assert optimizer.skipped.dtype == torch.bool
    torch.testing.assert_close(
        optimizer.grad_norm, torch.nn.utils.get_total_norm([p.grad for p in params]).double()
    )


def test_no_gradients_at_all():
    optimizer = fusedopt.SGD([torch.nn.Parameter(torch.ones(3))], max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.grad_norm == 0.0
    assert not optimizer.skipped


@pytest.mark.parametrize("row", **named(ROWS))
def test_options_of_every_class(row):
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = row.optimizer([param], max_grad_norm=0.25, skip_nonfinite=True)
    assert optimizer.max_grad_norm == 0.25
    assert optimizer.skip_nonfinite is True
    assert not {"max_grad_norm", "skip_nonfinite"} & optimizer.param_groups[0].keys()
    assert not {"max_grad_norm", "skip_nonfinite"} & optimizer.defaults.keys()
    for wrong in (-1.0, math.nan, -math.inf):
        with pytest.raises(ValueError, match="Invalid max_grad_norm value"):
            row.optimizer([param], max_grad_norm=wrong)
        with pytest.raises(ValueError, match="Invalid max_grad_norm value"):
            optimizer.max_grad_norm = wrong
    assert optimizer.max_grad_norm == 0.25
    with pytest.raises((TypeError, ValueError)):
        row.optimizer([param], max_grad_norm="much")


def test_pickles_and_copies_have_the_options_and_checkpoints_have_not():
    params = params_and_grads()
    optimizer = fusedopt.Adam(params, max_grad_norm=0.5, skip_nonfinite=True)
    optimizer.step()
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.max_grad_norm == 0.5
        assert other.skip_nonfinite is True
        assert other.grad_norm is None
    assert optimizer.state_dict().keys() == {"state", "param_groups"}
    other = fusedopt.Adam(params_and_grads(), max_grad_norm=3.0)
    other.load_state_dict(optimizer.state_dict())
    assert other.max_grad_norm == 3.0
    assert other.skip_nonfinite is False


def test_converted_optimizers_take_them():
    params = params_and_grads()
    optimizer = fusedopt.from_torch(torch.optim.AdamW(params))
    assert optimizer.max_grad_norm is None
    optimizer.max_grad_norm, optimizer.skip_nonfinite = 0.5, True
    twins = params_and_grads()
    beside = fusedopt.AdamW(twins, max_grad_norm=0.5)
    for each in (optimizer, beside):
        each.step()
    for param, twin in zip(params, twins, strict=True):
        assert np.array_equal(bits(param), bits(twin))


@pytest.mark.parametrize("name", ["max_grad_norm", "skip_nonfinite"])
def test_a_group_cannot_have_them(name):
    (param,) = params_and_grads(sizes=(3,))
    optimizer = fusedopt.SGD([param])
    group = {"params": [torch.nn.Parameter(torch.ones(2))], name: 1.0}
    with pytest.raises(ValueError, match=f"group 1: {name} is an option of the optimizer"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match="ZeroRedundancyOptimizer"):
        fusedopt.SGD([{"params": [param], name: 1.0}])


def test_hooks_closures_and_schedulers():
    params = params_and_grads()
    optimizer = fusedopt.SGD(params, lr=1.0, max_grad_norm=1.0, skip_nonfinite=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    seen = []
    optimizer.register_step_post_hook(lambda o, *_: seen.append((o.grad_norm, o.skipped)))

    def closure():
        optimizer.zero_grad()
        loss = sum(param.square().sum() for param in params)
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    params[0].data[0] = math.nan
    optimizer.step(closure)
    scheduler.step()
    assert [bool(skipped) for _, skipped in seen] == [False, True]
    assert seen[0][0] > 1.0


def test_under_a_mode_that_sees_operations():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    params = params_and_grads()
    optimizer = fusedopt.SGD(params, max_grad_norm=1.0)
    with Mode():
        optimizer.step()
    assert optimizer.grad_norm > 1.0


class Imitation:
    """Wraps an optimizer as Lightning and Fabric do: of its class, without its attributes."""

    def __init__(self, optimizer):
        self.inner = optimizer
        self.__class__ = type("Imitation", (Imitation, type(optimizer)), {})

    def __getattr__(self, name):
        return getattr(self.inner, name)


def test_wrappers_that_imitate_the_class_say_what_the_optimizer_says():
    params = params_and_grads()
    optimizer = fusedopt.Adam(params, max_grad_norm=0.5, skip_nonfinite=True)
    wrapper = Imitation(optimizer)
    assert (wrapper.max_grad_norm, wrapper.skip_nonfinite) == (0.5, True)
    assert (wrapper.grad_norm, wrapper.skipped) == (None, None)
    optimizer.step()
    assert torch.equal(wrapper.grad_norm, optimizer.grad_norm)
    params[0].grad[0] = math.inf
    optimizer.step()
    assert wrapper.skipped
    optimizer._step_supports_amp_scaling = False
    assert wrapper._step_supports_amp_scaling is False


@pytest.mark.parametrize(("name", "value"), [("max_grad_norm", 2.0), ("skip_nonfinite", True)])
def test_wrappers_that_imitate_the_class_refuse_what_would_be_lost(name, value):
    optimizer = fusedopt.Adam(params_and_grads())
    wrapper = Imitation(optimizer)
    with pytest.raises(AttributeError, match=f"{name} .* wraps"):
        setattr(wrapper, name, value)
    setattr(optimizer, name, value)
    assert getattr(wrapper, name) == value
