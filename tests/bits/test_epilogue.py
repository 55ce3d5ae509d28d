"""What follows a step: an L1 penalty and averages, with the bits of the reference."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import reference
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import gradients
from helpers import MATRIX_LAYOUTS, Guarded, bits, parameter, scaled_step, snapshot

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
BOTH = {"l1": 0.3, "ema_decay": 0.75}

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def stepped(params, steps=3, optimizer_class=fusedopt.AdamW, **options):
    """An optimizer that has taken steps with the same gradients whatever the options are."""
    optimizer = optimizer_class(params, **{"lr": 0.1, **options})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return optimizer


def average_of(optimizer, param):
    return optimizer.state[param]["ema"]


# L1


@every_row
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
def test_shrinks_towards_zero_by_lr_times_l1_and_no_further(row, dtype):
    """A gradient of zero moves nothing by itself, so all that is left is the penalty."""
    values = [1.0, -1.0, 0.25, -0.25, 0.24, -0.24, 0.0, -0.0, math.inf, -math.inf, math.nan]
    param = parameter(torch.tensor(values, dtype=dtype))
    param.grad = torch.zeros_like(param)
    row.optimizer([param], lr=0.5, l1=0.5, weight_decay=0.0).step()
    expected = [0.75, -0.75, 0.0, -0.0, 0.0, -0.0, 0.0, -0.0, math.inf, -math.inf, math.nan]
    np.testing.assert_array_equal(param.detach().double().numpy(), expected)
    assert torch.signbit(param)[:6].tolist() == [False, True] * 3


def test_the_threshold_follows_the_learning_rate():
    param = parameter(torch.ones(3))
    optimizer = fusedopt.SGD([param], lr=torch.tensor(0.25), l1=1.0)
    for lr in (0.25, 0.125):
        optimizer.param_groups[0]["lr"].fill_(lr)
        param.grad = torch.zeros(3)
        optimizer.step()
    assert param.tolist() == [0.625] * 3


def test_comes_after_decay_and_step():
    param = parameter(torch.tensor([1.0]))
    param.grad = torch.tensor([1.0])
    fusedopt.SGD([param], lr=0.5, weight_decay=1.0, l1=0.25).step()
    assert param.item() == 1.0 - 0.5 * (1.0 + 1.0 * 1.0) + 0.0  # zero: nothing to shrink
    param = parameter(torch.tensor([2.0]))
    param.grad = torch.tensor([1.0])
    fusedopt.SGD([param], lr=0.5, l1=0.25).step()
    assert param.item() == 2.0 - 0.5 - 0.125


# Averages


def test_the_first_average_is_a_copy():
    values = torch.tensor([1.5, -0.0, math.inf, -math.inf, math.nan, 1e-42])
    param = parameter(values.clone())
    param.grad = torch.zeros(6)
    optimizer = fusedopt.SGD([param], lr=0.1, ema_decay=0.5)
    optimizer.step()
    assert np.array_equal(bits(average_of(optimizer, param)), bits(values))


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 1.0])
def test_an_average_of_the_parameter_as_it_is_stored(dtype, decay):
    """In 16 bits of what the step has rounded, in float32, where it does not stand still."""
    param = parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)).to(dtype))
    optimizer = fusedopt.AdamW([param], lr=0.01, ema_decay=decay)
    wide = F64 if dtype == F64 else F32
    expected = None
    for step in range(6):
        param.grad = torch.randn(1000).to(dtype)
        optimizer.step()
        stored = param.detach().to(wide, copy=True).numpy()
        weight = 1 / (step + 1) if decay == 1 else 1 - decay
        expected = stored if expected is None else reference.lerp(expected, stored, weight)
        average = average_of(optimizer, param)
        assert average.dtype == wide
        assert np.array_equal(bits(average), bits(torch.from_numpy(expected)))


def test_the_mean_of_all_parameters_so_far():
    param = parameter(torch.tensor([0.0], dtype=F64))
    optimizer = fusedopt.SGD([param], lr=1.0, ema_decay=1)
    for step in range(1, 9):
        param.grad = torch.tensor([-1.0], dtype=F64)
        optimizer.step()
        assert param.item() == step
        assert average_of(optimizer, param).item() == pytest.approx((step + 1) / 2, rel=1e-15)
    assert optimizer.state[param]["ema_step"].item() == 8


@pytest.mark.parametrize("which", [fusedopt.SGD, fusedopt.AdamW])
def test_averaging_that_begins_late_begins_with_a_copy(which):
    """And the mean counts from there, as it does where it takes over from another average."""
    param = parameter(torch.randn(10))
    optimizer = stepped([param], optimizer_class=which)
    for decay in (1, 0.5, 1):
        optimizer.param_groups[0]["ema_decay"] = decay
        if decay == 1:
            for state in ("ema", "ema_step"):
                optimizer.state[param].pop(state, None)
        param.grad = torch.ones(10)
        optimizer.step()
        if decay == 1:
            assert torch.equal(average_of(optimizer, param), param.detach())
            assert optimizer.state[param]["ema_step"].item() == 1


def test_a_mean_that_takes_over_begins_anew():
    param = parameter(torch.randn(10))
    optimizer = stepped([param], ema_decay=0.5)
    optimizer.param_groups[0]["ema_decay"] = 1.0
    param.grad = torch.ones(10)
    optimizer.step()
    assert torch.equal(average_of(optimizer, param), param.detach())


def test_the_mean_of_an_average_that_was_dropped_begins_anew():
    param = parameter(torch.randn(10))
    optimizer = stepped([param], ema_decay=1)
    del optimizer.state[param]["ema"]
    values = []
    for _ in range(3):
        param.grad = torch.ones(10)
        optimizer.step()
        values.append(param.detach().clone())
    assert optimizer.state[param]["ema_step"].item() == 3
    torch.testing.assert_close(average_of(optimizer, param), torch.stack(values).mean(0))


@pytest.mark.parametrize("decay", [0.0, 1])
def test_a_copy_forgets_what_is_not_finite(decay):
    param = parameter(torch.ones(10))
    optimizer = stepped([param], ema_decay=0.5)
    average_of(optimizer, param).fill_(math.nan)
    optimizer.param_groups[0]["ema_decay"] = decay
    param.grad = torch.ones(10)
    optimizer.step()
    assert np.array_equal(bits(average_of(optimizer, param)), bits(param))


def test_an_average_that_has_ended_stays():
    param = parameter(torch.randn(10))
    optimizer = stepped([param], ema_decay=0.5)
    before = average_of(optimizer, param).clone()
    optimizer.param_groups[0]["ema_decay"] = None
    param.grad = torch.ones(10)
    optimizer.step()
    assert torch.equal(average_of(optimizer, param), before)


# Whatever lies how in memory, and whoever steps it


@pytest.mark.parametrize("layout", MATRIX_LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts(layout, dtype):
    values = torch.randn(40, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    usual = parameter(values.clone())
    other = parameter(MATRIX_LAYOUTS[layout](values.clone()))
    for param in (usual, other):
        stepped([param], **BOTH)
    assert np.array_equal(bits(usual), bits(other))
    one, two = (stepped([parameter(p.detach().clone())], **BOTH) for p in (usual, other))
    for a, b in zip(one.state.values(), two.state.values(), strict=True):
        assert np.array_equal(bits(a["ema"]), bits(b["ema"]))


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 70_001])
def test_sizes_and_threads_write_nothing_outside(size, threads):
    torch.set_num_threads(threads)
    guarded = Guarded(size, F32)
    param = parameter(guarded.view((size,), (1,)))
    param.data.copy_(torch.randn(size, generator=torch.Generator().manual_seed(0)))
    optimizer = fusedopt.Adam([param], lr=0.1, **BOTH)
    plain, expected, average = None, param.detach().clone(), None
    for _ in range(2):
        param.grad = torch.ones(size)
        optimizer.step()
    twin = parameter(expected)
    plain = fusedopt.Adam([twin], lr=0.1)
    for _ in range(2):
        twin.grad = torch.ones(size)
        plain.step()
        with torch.no_grad():
            twin.copy_(torch.from_numpy(reference.shrink(twin.detach().numpy(), 0.1 * 0.3)))
        value = twin.detach().numpy().copy()
        average = value if average is None else reference.lerp(average, value, 0.25)
    assert np.array_equal(bits(param), bits(twin))
    if size:
        assert np.array_equal(bits(average_of(optimizer, param)), bits(torch.from_numpy(average)))
    guarded.assert_untouched()


@every_row
def test_in_the_backward_pass(row):
    grads = [gradients(300, F32, np.random.default_rng(seed)) for seed in range(3)]
    results = []
    for in_backward in (False, True):
        params = [parameter(torch.ones(300)) for _ in grads]
        optimizer = row.optimizer(params, **BOTH)
        if in_backward:
            fusedopt.step_in_backward(optimizer)
        for _ in range(2):
            sum((p * g).sum() for p, g in zip(params, grads, strict=True)).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append([(bits(p), bits(average_of(optimizer, p))) for p in params])
    for one, other in zip(*results, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("decay", [0.5, 1])
def test_a_step_that_is_skipped_counts_and_averages_nothing(decay):
    options = {"l1": 0.3, "ema_decay": decay, "skip_nonfinite": True}
    for begun in (False, True):
        param = parameter(torch.randn(100))
        optimizer = stepped([param], steps=2 if begun else 0, **options)
        before = snapshot(optimizer)
        param.grad = torch.full((100,), math.nan)
        before[0, 0].update(snapshot(optimizer)[0, 0] | {"version": param._version})
        optimizer.step()
        assert snapshot(optimizer) == before
        scaled_step(optimizer, scale=2.0, found_inf=1.0)
        assert snapshot(optimizer) == before


def test_with_a_scaler_and_clipping():
    """Both come ahead of the step, so that what follows is the same."""
    results = []
    for scale in (None, 8.0):
        param = parameter(torch.linspace(-2, 2, 500))
        optimizer = fusedopt.SGD([param], lr=0.1, momentum=0.9, max_grad_norm=0.5, **BOTH)
        for _ in range(3):
            param.grad = torch.linspace(1, 2, 500) * (scale or 1.0)
            scaled_step(optimizer, scale)
        results.append((bits(param).copy(), bits(average_of(optimizer, param)).copy()))
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


def test_uninterrupted_training_equals_save_load_go_on():
    for options in (BOTH, {"ema_decay": 1}, {**BOTH, "master_weights": True, "state_bits": 8}):
        dtype = BF16 if "master_weights" in options else F16
        param = parameter(torch.randn(5000, generator=torch.Generator().manual_seed(0)).to(dtype))
        optimizer = stepped([param], **options)
        copied = parameter(param.detach().clone())
        resumed = fusedopt.AdamW([copied], lr=0.1)
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for each in (optimizer, resumed):
            for grad in (0.5, -1.0):
                each.param_groups[0]["params"][0].grad = torch.full((5000,), grad, dtype=dtype)
                each.step()
        one, other = snapshot(optimizer)[0, 0], snapshot(resumed)[0, 0]
        assert {**one, "version": 0} == {**other, "version": 0}
