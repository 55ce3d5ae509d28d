"""The measuring pass of the CUDA engine, its body run on the CPU: bits of the norm, and decisions.

The CPU's own pass, which these are compared with, has the bits of the reference
(``tests/bits/test_norm.py``).
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulated, emulation
from fusedopt import _native, reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES
from fusedopt.checking.verify import gradients, to_array
from fusedopt.optimizers import clipping
from helpers import bits, content, parameter, scaled_step, snapshot

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
SIZES = (0, 1, 63, 64, 65, 1000, 1024, 65535, 65536, 65537, 65536 + 1025, 150_001)


def sums_of(tensors, numbers=None):
    return _native.sums_of_squares(tensors, numbers or [0] * len(tensors))


def decided(tensors, max_norm=math.inf):
    """Norm and factor, as a device decides; zeroed sums are left, or the engine raises."""
    memory = _native.decide_on_device(tensors, max_norm, clipping.new_decision)
    return memory[0].item(), memory[1].item()


def any_magnitude(size, dtype):
    values = gradients(size, dtype, np.random.default_rng(size))
    return torch.where(values.double().abs() < 1e150, values, torch.ones_like(values))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize(("overflows", "seed"), [(False, 0), (True, 3)])
def test_every_size(dtype, overflows, seed):
    tensors = [any_magnitude(size, dtype) for size in SIZES]
    ordinary = [torch.randn(size).to(dtype) for size in SIZES]
    for group in (*([tensor] for tensor in ordinary), ordinary, tensors):
        expected = sums_of(group)
        norm = reference.total_norm(to_array(tensor) for tensor in group)
        with emulation(overflows, seed):
            assert sums_of(group) == expected
            assert decided(group, 3.0) == (norm, reference.clip_factor(3.0, norm))


@pytest.mark.parametrize(
    ("count", "storage"), [(1, "small"), (120, "small"), (130, "large"), (1100, "overflow")]
)
def test_one_launch_whatever_the_number_of_tensors(count, storage):
    params = [parameter(torch.zeros(3)) for _ in range(count)]
    for n, param in enumerate(params):
        param.grad = torch.full((3,), float(n))
    optimizer = fusedopt.SGD(params, lr=0.5, max_grad_norm=1.0)
    with emulation(seed=count):
        before = emulated.measured(), emulated.launches()
        optimizer.step()
        assert (emulated.measured(), emulated.launches()) == (before[0] + 1, before[1] + 1)
    assert emulated.storage_of_squares() == storage
    assert optimizer.grad_norm == math.sqrt(3 * sum(n * n for n in range(count)))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_every_layout(dtype):
    base = torch.randn(300, 500).to(dtype)
    cube = torch.randn(40, 50, 60).to(dtype)
    views = [
        base.T, base[:, ::2], base[1::3, 7:], base[:, 3], cube.permute(2, 0, 1),
        cube.permute(1, 2, 0)[3:, ::2], base[:, :1].expand(300, 70),
        torch.ones((), dtype=dtype).expand(70_000), torch.tensor(3.0, dtype=dtype),
        base.flatten()[1:],
    ]  # fmt: skip
    expected = sums_of(views, list(range(len(views))))
    for overflows in (False, True):
        with emulation(overflows, seed=5):
            assert sums_of(views, list(range(len(views)))) == expected


@pytest.mark.parametrize(
    "values",
    [
        (2.0**53, 2.0**26, 2.0**26),
        (2.0**53, 2.0**26, 2.0**26, 2.0**-530),
        (5e-324, 1e-162, 1e-162),
        (1e-154, 3e-155, 1e-161),
        (0.0, -0.0),
        (1.3e154, 1.2e154),
        (1e154, 1e155),
        (1.0, math.inf),
        (-math.inf, math.nan),
        (math.nan, 1e300),
    ],
)
def test_limits_of_doubles(values):
    tensors = [torch.tensor([value], dtype=torch.float64) for value in values]
    norm = reference.total_norm(tensor.numpy() for tensor in tensors)
    for max_norm in (0.0, 1.0, math.inf):
        expected = [norm, reference.clip_factor(max_norm, norm)]
        with emulation():
            found = decided(tensors, max_norm)
        assert np.array_equal(found, expected, equal_nan=True)


def pair(row, tensors, of_device, **options):
    """The same optimizer twice: that of the CPU has none of the options for the device."""
    both = []
    for more in (of_device, {}):
        params = [parameter(tensor.clone()) for tensor in tensors]
        both.append((row.optimizer(params, **options, **more), params))
    return both


def give(params, grads):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()


def assert_same(ours, theirs, params, others):
    assert content(ours.grad_norm) == content(theirs.grad_norm)
    assert bool(ours.skipped) == bool(theirs.skipped)
    for param, other in zip(params, others, strict=True):
        assert np.array_equal(bits(param), bits(other))
        assert np.array_equal(bits(param.grad), bits(other.grad))
        for name, state in theirs.state.get(other, {}).items():
            mine = ours.state[param][name]
            same = mine == state if name == "step" else np.array_equal(bits(mine), bits(state))
            assert same, name


@pytest.mark.parametrize("scale", [None, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_clipped_step_has_the_bits_of_the_cpu(case, dtype, scale):
    """Whoever derives the scalars; of several steps some are clipped, some not, one is skipped."""
    generator = np.random.default_rng(6)
    sizes = (0, 1, 7, 513, 4099)
    tensors = [torch.from_numpy(generator.standard_normal(n)).to(dtype) for n in sizes]
    for of_device, skips in (({}, False), ({"capturable": True}, False), ({}, True)):
        (ours, params), (theirs, others) = pair(
            case.row, tensors, of_device, **case.options, max_grad_norm=60.0, skip_nonfinite=skips
        )
        for step, size in enumerate((0.1, 30.0, 30.0, 1.0)):
            wide = [generator.standard_normal(n) * size * (scale or 1.0) for n in sizes]
            grads = [torch.from_numpy(values).to(dtype) for values in wide]
            if step == 2:
                grads[3][100] = math.nan
                if not skips:
                    continue
            give(params, grads)
            give(others, grads)
            with emulation(seed=step):
                ours.step() if scale is None else scaled_step(ours, scale)
            theirs.step() if scale is None else scaled_step(theirs, scale)
            assert_same(ours, theirs, params, others)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_with_every_way_to_store(storage):
    generator = np.random.default_rng(7)
    case = next(case for case in CASES if case.row.rule == "adam" and case.options)
    values = torch.from_numpy(generator.standard_normal(5000)).to(storage.param)
    options = {**case.options, **storage.options, "max_grad_norm": 10.0}
    for of_device in ({}, {"capturable": True}):
        (ours, params), (theirs, others) = pair(case.row, [values], of_device, **options)
        for _ in range(3):
            grad = torch.from_numpy(generator.standard_normal(5000)).to(storage.grad)
            for param in (*params, *others):
                param.grad_dtype = None
                param.grad = grad
            with emulation():
                ours.step()
            theirs.step()
            assert_same(ours, theirs, params, others)


def numbers_of(optimizer, has_states):
    """Without versions: what the host does not know to be unchanged counts as changed."""
    dropped = {"version"} if has_states else {"version", "state", *states_of(optimizer)}
    return {
        place: {name: value for name, value in entry.items() if name not in dropped}
        for place, entry in snapshot(optimizer).items()
    }


def states_of(optimizer):
    return {name for states in optimizer.state.values() for name in states}


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_skipped_step_changes_nothing(row, steps, special):
    """A first one leaves states that hold what they begin with, and counts no step."""
    tensors = [torch.randn(n) for n in (5, 3, 1000)]
    (ours, params), (theirs, others) = pair(row, tensors, {}, skip_nonfinite=True)

    def step_both(grads):
        give(params, grads)
        give(others, grads)
        with emulation(seed=1):
            ours.step()
        theirs.step()

    for step in range(steps):
        step_both([torch.full_like(param, 0.5 + step) for param in params])
    give(params, tensors)
    params[2].grad[-1] = special
    before = numbers_of(ours, steps > 0)
    with emulation(seed=1):
        ours.step()
    assert ours.skipped
    assert not ours.grad_norm.isfinite()
    assert numbers_of(ours, steps > 0) == before
    step_both(tensors)
    assert_same(ours, theirs, params, others)


def test_what_a_scaler_has_found_is_said():
    (param,) = [parameter(torch.ones(5))]
    param.grad = torch.full((5,), 3.0)
    optimizer = fusedopt.Adagrad([param], max_grad_norm=1.0)
    with emulation():
        scaled_step(optimizer, 2.0, 1.0)
        assert optimizer.skipped
        assert optimizer.grad_norm == math.sqrt(5 * 1.5**2)
        assert (param == 1).all()
        optimizer.step()
        assert not optimizer.skipped


class Plain(torch.nn.Parameter):
    """A user's own class of parameters."""


def test_sums_of_several_ranks(monkeypatch):
    """The host adds them up, and tells the device; memory that moves meanwhile is found."""
    params = [Plain(torch.ones(3)), Plain(torch.ones(3))]
    for param in params:
        param.grad = torch.ones(3)

    def replace(self, sums):
        params[0].data = torch.full((3,), 5.0)
        return [sum(column) for column in zip(*sums, strict=True)]

    monkeypatch.setattr(clipping.Measurement, "sum_of", lambda self, param: 1)
    monkeypatch.setattr(clipping.Measurement, "total", replace)
    optimizer = fusedopt.SGD(params, lr=1.0, max_grad_norm=0.5)
    with emulation():
        optimizer.step()
    factor = np.float32(reference.clip_factor(0.5, math.sqrt(6)))
    assert params[0].tolist() == [np.float32(5) - factor] * 3
    assert params[1].tolist() == [np.float32(1) - factor] * 3
    assert optimizer.grad_norm == math.sqrt(6)


def test_a_measurement_that_fails_changes_nothing():
    params = [parameter(torch.ones(3))]
    params[0].grad = torch.ones(3)
    optimizer = fusedopt.Adam(params, max_grad_norm=1.0, skip_nonfinite=True)
    before = snapshot(optimizer)
    with emulation(fails=True), pytest.raises(RuntimeError, match="the launch fails"):
        optimizer.step()
    assert snapshot(optimizer) == before
    assert not optimizer.state
    assert optimizer.grad_norm is None


@pytest.mark.parametrize("name", ["max_norm", "no number", "one"])
def test_memory_for_a_decision_that_is_none_is_refused(name, monkeypatch):
    made = {"max_norm": torch.zeros(3), "no number": 3.0, "one": torch.zeros(1).double()}[name]
    monkeypatch.setattr(clipping, "new_decision", lambda like: made)
    param = parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = fusedopt.SGD([param], max_grad_norm=1.0)
    with emulation(), pytest.raises((RuntimeError, TypeError), match="memory for a norm"):
        optimizer.step()
    assert (param == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_functions_in_place_of_torchs(dtype):
    grads = [torch.randn(n).to(dtype) for n in (5, 3, 1000)]
    results = []
    for on_device in (True, False):
        params = [parameter(torch.zeros_like(grad)) for grad in grads]
        give(params, grads)
        with emulation() if on_device else torch.no_grad():
            norms = [
                fusedopt.get_total_norm([param.grad for param in params]),
                fusedopt.clip_grad_norm_(params, 100.0),
                fusedopt.clip_grad_norm_(params, 1.0),
            ]
        results.append([content(norm) for norm in norms] + [content(p.grad) for p in params])
    assert results[0] == results[1]


def test_errors_of_the_functions():
    param = parameter(torch.zeros(3))
    param.grad = torch.tensor([1.0, math.inf, 0.0])
    with emulation():
        with pytest.raises(RuntimeError, match="non-finite"):
            fusedopt.clip_grad_norm_([param], 1.0, error_if_nonfinite=True)
        with pytest.raises(RuntimeError, match="tensor 1"):
            fusedopt.get_total_norm([param.grad, torch.ones(3, dtype=torch.int32)])
    assert param.grad.tolist() == [1.0, math.inf, 0.0]
