"""The norm of gradients has the bits of the reference, and so has a step that is clipped by it."""

from __future__ import annotations

import math
import mmap
import resource

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import _native, reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES, Expected
from fusedopt.checking.verify import (
    count_mismatches,
    gradients,
    isa,
    reference_rule,
    threads,
    to_array,
)
from helpers import ISAS, ISAS_OF_KERNELS, bits, parameter, scaled_step

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
SIZES = (0, 1, 63, 64, 65, 127, 1000, 4099, 65535, 65536, 65537, 131072, 300_001)


def norm_of(tensors) -> float:
    return _native.norm_of_squares(_native.sums_of_squares(tensors, [0] * len(tensors))[0])


def expected_norm(tensors) -> float:
    return reference.total_norm(to_array(tensor) for tensor in tensors)


def same(a: float, b: float) -> bool:
    return np.float64(a).tobytes() == np.float64(b).tobytes() or (math.isnan(a) and math.isnan(b))


def any_magnitude(size, dtype, seed=0):
    """Numbers from the whole range of a dtype, but those whose square is no double."""
    values = gradients(size, dtype, np.random.default_rng(seed))
    return torch.where(values.double().abs() < 1e150, values, torch.ones_like(values))


@pytest.mark.parametrize("name", ISAS_OF_KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_every_size_thread_count_and_instruction_set(dtype, name):
    tensors = [any_magnitude(size, dtype, size) for size in SIZES]
    ordinary = [torch.randn(size).to(dtype) for size in SIZES]
    for group in (*([tensor] for tensor in ordinary), ordinary, tensors):
        expected = expected_norm(group)
        assert math.isfinite(expected)
        for count in (1, 2, 3):
            with isa(name), threads(count):
                assert same(norm_of(group), expected)


def test_any_order_of_tensors_and_groups():
    generator = np.random.default_rng(1)
    tensors = [any_magnitude(size, torch.float32, size) for size in (*SIZES, *range(1, 200))]
    expected = expected_norm(tensors)
    for _ in range(5):
        generator.shuffle(tensors)
        assert same(norm_of(tensors), expected)
        params = [parameter(torch.zeros_like(tensor)) for tensor in tensors]
        for param, tensor in zip(params, tensors, strict=True):
            param.grad = tensor
        groups = [{"params": params[k::3]} for k in range(3)]
        optimizer = fusedopt.SGD(groups, lr=0.0, max_grad_norm=math.inf)
        optimizer.step()
        assert same(optimizer.grad_norm.item(), expected)


def test_dtypes_together():
    tensors = [torch.randn(70_001).to(dtype) for dtype in DTYPES]
    assert same(norm_of(tensors), expected_norm(tensors))


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_every_layout(dtype, each_isa):
    """Dense memory in its own order, whatever that is called; anything else by its strides."""
    base = torch.randn(300, 500).to(dtype)
    cube = torch.randn(40, 50, 60).to(dtype)
    views = {
        "transposed": base.T,
        "columns": base[:, ::2],
        "rows": base[1::3, 7:],
        "one column": base[:, 3],
        "permuted": cube.permute(2, 0, 1),
        "permuted slices": cube.permute(1, 2, 0)[3:, ::2],
        "expanded": base[:, :1].expand(300, 70),
        "one number": torch.ones((), dtype=dtype).expand(70_000),
        "number": torch.tensor(3.0, dtype=dtype),
        "shifted": base.flatten()[1:],
    }
    for name, view in views.items():
        memory = to_array(view.as_strided((extent(view),), (1,)))
        strides = [stride * memory.itemsize for stride in view.stride()]
        array = np.lib.stride_tricks.as_strided(memory, view.shape, strides)
        assert np.array_equal(array, to_array(view))
        assert same(norm_of([view]), reference.total_norm([array])), name
    assert same(norm_of([base.T]), norm_of([base]))


def extent(view):
    """Elements from the first to the last of a view, gaps included."""
    return 1 + sum((size - 1) * step for size, step in zip(view.shape, view.stride(), strict=True))


def of_squares(*values):
    return [torch.tensor([value], dtype=torch.float64) for value in values]


def test_sums_are_exact_and_rounded_once():
    generator = np.random.default_rng(2)
    for _ in range(30):
        values = generator.standard_normal(300) * 2.0 ** generator.integers(-530, 505, 300)
        tensors = of_squares(*values)
        assert same(norm_of(tensors), math.sqrt(math.fsum(v * v for v in values)))


def test_ties_are_rounded_to_even_before_the_root():
    """Of sums of powers of 4 in the middle between two doubles, those whose roots differ."""
    generator = np.random.default_rng(3)
    seen = set()
    for _ in range(100):
        powers = [53, *(k for k in range(27, 53) if generator.random() < 0.5)]
        below = sum(4**k for k in powers)  # of which 2^54 is one unit
        if math.sqrt(below) == math.sqrt(below + 2**54):
            continue
        half = [2.0**26] * 2
        for more in ((), (2.0**-500,)):
            values = [*(2.0**k for k in powers), *half, *more]
            expected = math.sqrt(math.fsum(value * value for value in values))
            assert same(norm_of(of_squares(*values)), expected)
            seen.add((27 in powers, bool(more)))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "values",
    [
        (2.0**53, 2.0**26, 2.0**26),  # a tie, to the even below
        (2.0**53, 2.0**26, 2.0**26, 2.0**-530),  # a little more than that
        (2.0**53, 2.0**27, 2.0**26, 2.0**26),  # a tie, to the even above
        (2.0**53, 2.0**27, 2.0**26),  # below a tie
        (2.0**16, *[2.0**-10] * 5),
        (5e-324, 1e-162, 1e-162),  # squares below the smallest double, or near it
        (1e-160, 3e-161),
        (1e-154, 3e-155, 1e-161),
        (0.0, -0.0),
        (1e154, 1e150),
        (1.3e154, 1.2e154),  # the sum is no double
        (1e154, 1e155),  # nor is a square
        (1.0, math.inf),
        (-math.inf, math.nan),
        (math.nan, 1e300),
    ],
)
def test_limits_of_doubles(values):
    tensors = of_squares(*values)
    assert same(norm_of(tensors), expected_norm(tensors))


@pytest.mark.parametrize("special", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_one_number_that_is_none(dtype, special, each_isa):
    for size in (1, 64, 65, 70_001):
        for position in {0, size // 2, size - 1}:
            tensor = torch.ones(size, dtype=dtype)
            tensor[position] = special
            assert same(norm_of([torch.ones(5), tensor]), abs(special))


def clipped(optimizer, params, grads, scale):
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad.clone()
    if scale is None:
        optimizer.step()
    else:
        scaled_step(optimizer, scale)


@pytest.mark.parametrize("scale", [None, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_has_the_bits_of_the_reference(case, dtype, scale):
    """Of several norms some are clipped; what is clipped is the quotient by the scale."""
    sizes, max_norm = (0, 1, 7, 513, 4099), 60.0
    generator = np.random.default_rng(6)
    initial = [torch.from_numpy(generator.standard_normal(n)).to(dtype) for n in sizes]
    params = [torch.nn.Parameter(values.clone()) for values in initial]
    optimizer = case.row.optimizer(params, **case.options, max_grad_norm=max_norm)
    options = case.row.reference_options(optimizer.param_groups[0])
    rule = reference_rule(case, dtype)
    expected = [(to_array(values), {}) for values in initial]
    factors = []
    for size in (0.1, 1.0, 30.0):
        wide = [generator.standard_normal(n) * size * (scale or 1.0) for n in sizes]
        grads = [torch.from_numpy(values).to(dtype) for values in wide]
        arrays = [reference.unscale(to_array(grad), scale or 1.0) for grad in grads]
        norm = reference.total_norm(arrays)
        factors.append(reference.clip_factor(max_norm, norm))
        expected = [
            rule(param, reference.clip(grad, factors[-1]), state, **options)
            for (param, state), grad in zip(expected, arrays, strict=True)
        ]
        clipped(optimizer, params, grads, scale)
        assert same(optimizer.grad_norm.item(), norm)
        assert not optimizer.skipped
        for param, grad, (value, state) in zip(params, grads, expected, strict=True):
            assert count_mismatches(to_array(param), value) == 0
            for name in set(state) - {"step"}:
                assert count_mismatches(to_array(optimizer.state[param][name]), state[name]) == 0
            if scale is None:
                assert np.array_equal(bits(param.grad), bits(grad))
                assert param.grad._version == 0
    assert factors[0] == 1.0 > factors[2]


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_with_every_way_to_store(storage):
    """Fewer bytes, and gradients of another dtype than their parameter."""
    generator = np.random.default_rng(7)
    case = next(case for case in CASES if case.row.rule == "adam" and case.options)
    values = torch.from_numpy(generator.standard_normal(5000)).to(storage.param)
    param = parameter(values.clone())
    optimizer = case.row.optimizer(
        [param], **case.options, **storage.options, max_grad_norm=10.0, skip_nonfinite=True
    )
    options = case.row.reference_options(optimizer.param_groups[0])
    one = Expected(case, storage, values)
    for _ in range(3):
        grad = torch.from_numpy(generator.standard_normal(5000)).to(storage.grad)
        param.grad = grad
        optimizer.step()
        wide = to_array(grad).astype(one.arithmetic)
        factor = reference.clip_factor(10.0, reference.total_norm([to_array(grad)]))
        assert factor < 1
        one.step(torch.from_numpy(reference.clip(wide, factor)), options)
        assert one.mismatches(param, optimizer.state[param]) == 0


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_threads_and_layouts_give_the_same_bits(row):
    results = []
    for count, name in [(1, ISAS[0]), (2, ISAS[-1]), (3, ISAS[-1])]:
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(700, 500)), torch.nn.Parameter(torch.randn(9, 11))]
        optimizer = row.optimizer(params, max_grad_norm=0.5, maximize=True)
        params[0].grad = torch.randn(500, 700).T
        params[1].grad = torch.randn(9, 22)[:, ::2]
        with isa(name), threads(count):
            optimizer.step()
        results.append([bits(param) for param in params])
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("max_norm", [0.0, 1e-30, 5.0, math.inf])
def test_edges_of_the_factor(max_norm):
    """Of a factor of zero the sign of the product is that of the gradient, for every parameter."""
    for maximize in (False, True):
        params = [torch.nn.Parameter(torch.full((4,), -0.0)) for _ in range(3)]
        optimizer = fusedopt.Momentum(
            params, momentum=0.0, lr=1.0, maximize=maximize, max_grad_norm=max_norm
        )
        grad = torch.tensor([3.0, -4.0, 0.0, -0.0])
        for param in params:
            param.grad = grad.clone()
        optimizer.step()
        norm = reference.total_norm([grad.numpy()] * 3)
        factor = reference.clip_factor(max_norm, norm)
        expected, _ = reference.momentum(
            np.full(4, -0.0, np.float32), reference.clip(grad.numpy(), factor), {},
            momentum=0.0, lr=1.0, maximize=maximize,
        )  # fmt: skip
        for param in params:
            assert np.array_equal(bits(param), expected.view(np.int32))


def page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("count", [1, 3])
def test_the_floor_of_the_norm_reads_every_page(dtype, count):
    """Memory that nobody has touched: the system counts what is read of it."""
    size = (64 << 20) // dtype.itemsize
    with mmap.mmap(-1, 64 << 20) as memory, threads(count):
        memory.madvise(mmap.MADV_NOHUGEPAGE)
        tensor = torch.frombuffer(memory, dtype=dtype)
        parts = [tensor[: size // 3], tensor[size // 3 :]]
        before = page_faults()
        _native.touch_lines(parts)
        pages = (64 << 20) // mmap.PAGESIZE
        assert pages <= page_faults() - before <= pages + 1000
        del tensor, parts


def test_the_floor_of_the_norm_takes_what_it_can_read():
    whole = torch.ones(4, 4)
    _native.touch_lines([])
    _native.touch_lines([torch.ones(0), whole.T])
    with pytest.raises(ValueError, match="tensor 1: it has gaps"):
        _native.touch_lines([whole, whole[:, ::2]])
    with pytest.raises(TypeError, match="an element of the list"):
        _native.touch_lines([whole, 3])
