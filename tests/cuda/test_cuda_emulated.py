"""The CUDA kernels' body on the CPU: every block and thread of it, compared as integers.

This proves the cutting, the table in both storages, heads, tails, alignment, indices, counting and
skipping. What only a GPU can show is in ``tests/gpu``.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulated, emulation
from fusedopt import _native, reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import (
    count_mismatches,
    gradients,
    reference_rule,
    to_array,
    verify_case,
)
from helpers import MATRIX_LAYOUTS, Guarded, bits, scaled_step, snapshot

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
ROW_IDS = [row.name for row in ROWS]


def chunk(dtype):
    return emulated.chunk_bytes // dtype.itemsize


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference(case, dtype):
    """Scalars from the host, then derived by the kernel from step counts in its memory."""
    isa = _native.selected_isa()
    for capturable, overflows, seed in ((False, False, 1), (True, False, 2), (True, True, 3)):
        options = {**case.options, "capturable": capturable}
        with emulation(overflows, seed):
            (result,) = verify_case(replace(case, options=options), dtype, [isa], [1], steps=8)
        assert emulated.storage() == ("overflow" if overflows else "small")
        assert result.mismatches == 0, result.first_mismatch


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("rule", ["Adam", "SGD"])
@pytest.mark.parametrize("relative_offset", [0, 1], ids=["aligned alike", "aligned unlike"])
def test_every_size_and_offset_around_packs_and_chunks(rule, dtype, relative_offset):
    case = next(c for c in CASES if c.row.name == rule and c.options)
    expected_rule = reference_rule(case, dtype)
    generator = np.random.default_rng(3)
    whole = chunk(dtype)
    sizes = [*range(34), *(n * whole + d for n in (1, 2) for d in (-9, -8, -1, 0, 1, 7, 8, 9))]
    for size in sizes:
        offset = size // 3 % 16  # so that heads of any length go with tails of any length
        guards = []

        def place(values, extra, guards=guards, offset=offset):
            guarded = Guarded(values.numel() + 32, dtype, margin=64)
            guards.append(guarded)
            return guarded.view(values.shape, (1,), offset + extra).copy_(values)

        param = torch.nn.Parameter(place(torch.randn(size).to(dtype), 0))
        param.grad = place(gradients(size, dtype, generator), relative_offset)
        optimizer = case.row.optimizer([param], **case.options)
        options = case.row.reference_options(optimizer.param_groups[0])
        expected = (to_array(param), {})
        for step in range(3):
            expected = expected_rule(expected[0], to_array(param.grad), expected[1], **options)
            with emulation():
                optimizer.step()
            if step == 0:
                for name, value in optimizer.state[param].items():
                    if name != "step":
                        optimizer.state[param][name] = place(value, 0)
        assert count_mismatches(to_array(param), expected[0]) == 0, size
        for name, value in expected[1].items():
            if name != "step":
                assert count_mismatches(to_array(optimizer.state[param][name]), value) == 0, size
        for guarded in guards:
            guarded.assert_untouched()


LAYOUTS = {
    **MATRIX_LAYOUTS,
    "reversed dimensions": lambda t: t.clone(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_layouts(of_param, of_grad, dtype):
    values, grads = torch.randn(67, 131).to(dtype), torch.randn(67, 131).to(dtype)
    results = []
    for engine in (contextlib.nullcontext(), emulation()):
        param = torch.nn.Parameter(LAYOUTS[of_param](values))
        param.grad = LAYOUTS[of_grad](grads)
        optimizer = fusedopt.Adam([param], weight_decay=0.1)
        with engine:
            for _ in range(2):
                optimizer.step()
        results.append((bits(param), bits(optimizer.state[param]["exp_avg"])))
    for ours, theirs in zip(*results, strict=True):
        assert np.array_equal(ours, theirs)


def test_expanded_gradient_scalar_and_four_dimensions():
    for shape, grad in (
        ((), torch.tensor(0.5)),
        ((1,), torch.tensor([0.5])),
        ((0, 3), torch.ones(0, 3)),
        ((5, 1, 7), torch.ones(7).expand(5, 1, 7)),
        ((3, 4, 5, 6), torch.randn(3, 5, 6, 4).permute(0, 3, 1, 2)),
    ):
        results = []
        for engine in (contextlib.nullcontext(), emulation()):
            param = torch.nn.Parameter(torch.ones(shape))
            param.grad = grad
            with engine:
                fusedopt.Adagrad([param]).step()
            results.append(bits(param))
        assert np.array_equal(*results), shape


def many(count, optimizer_class=fusedopt.Adam, numel=3, groups=1, **options):
    params = [torch.nn.Parameter(torch.randn(numel)) for _ in range(count)]
    for param in params:
        param.grad = torch.randn(numel)
    size = math.ceil(count / groups)
    return optimizer_class(
        [{"params": params[i : i + size]} for i in range(0, count, size)], **options
    )


@pytest.mark.parametrize(
    ("count", "groups", "storage"),
    [(1, 1, "small"), (45, 1, "small"), (60, 1, "large"), (350, 1, "large"), (3000, 1, "overflow"),
     (500, 500, "overflow")],
)  # fmt: skip
def test_one_launch_whatever_the_number_of_tensors(count, groups, storage):
    torch.manual_seed(0)
    ours = many(count, groups=groups)
    torch.manual_seed(0)
    theirs = many(count, groups=groups)
    with emulation(seed=count):
        ours.step()
        assert emulated.launches() == 1
        assert emulated.blocks() == count
        assert emulated.storage() == storage
    theirs.step()
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for param, twin in zip(group["params"], other["params"], strict=True):
            assert np.array_equal(bits(param), bits(twin))


def test_one_launch_for_all_dtypes_options_and_sizes():
    def build():
        torch.manual_seed(0)
        groups = []
        for dtype in DTYPES:
            for n, options in enumerate(
                ({}, {"lr": 0.1, "weight_decay": 0.1}, {"amsgrad": True, "maximize": True})
            ):
                params = [
                    torch.nn.Parameter(torch.randn(size).to(dtype))
                    for size in (1, 5, 3 * chunk(dtype) + n, 0)
                ]
                for param in params:
                    param.grad = torch.randn(param.shape).to(dtype)
                groups.append({"params": params, **options})
        return fusedopt.Adam(groups)

    ours, theirs = build(), build()
    theirs.step()
    with emulation(seed=7):
        ours.step()
        assert emulated.launches() == 1
        # Work is cut by element count: one block a small tensor, one each chunk of a large one.
        assert emulated.blocks() == len(DTYPES) * ((2 + 3) + (2 + 4) + (2 + 4))
    assert snapshot(ours) == snapshot(theirs)


@pytest.mark.parametrize("count", [1, 3, 700])
def test_the_kernel_counts_every_step_once(count):
    """Whatever the number of blocks and their order; an empty tensor counts its steps as well."""
    params = [torch.nn.Parameter(torch.randn(size)) for size in (0, 1, 3 * chunk(torch.float32))]
    params += [torch.nn.Parameter(torch.randn(2)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = fusedopt.Adam(params, capturable=True)
    for seed in range(1, 6):
        with emulation(seed=seed):
            optimizer.step()
        assert {optimizer.state[param]["step"].item() for param in params} == {seed}


def test_the_kernel_counts_where_there_is_nothing_else_to_do():
    params = [torch.nn.Parameter(torch.randn(0)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = fusedopt.Adam(params, capturable=True)
    with emulation():
        optimizer.step()
        optimizer.step()
    assert {optimizer.state[param]["step"].item() for param in params} == {2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.int64])
def test_types_of_step_counts(dtype):
    results = []
    for engine, options in (
        (contextlib.nullcontext(), {}),
        (emulation(), {"capturable": True}),
    ):
        optimizer = many(3, **options)
        params = optimizer.param_groups[0]["params"]
        torch.manual_seed(1)
        for param in params:
            param.data = torch.randn(3)
            param.grad = torch.randn(3)
            zeros = {name: torch.zeros(3) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[param] = {"step": torch.tensor(41, dtype=dtype), **zeros}
        with engine:
            optimizer.step()
        for param in params:
            assert optimizer.state[param]["step"] == 42
            assert optimizer.state[param]["step"].dtype == dtype
        results.append([bits(param) for param in params])
    assert np.array_equal(*results)


@pytest.mark.parametrize("row", ROWS, ids=ROW_IDS)
def test_learning_rate_in_the_devices_memory(row):
    """The kernel reads it when it runs, so that a replayed graph follows a scheduler."""
    for dtype in (torch.float32, torch.float64):
        results = []
        for engine, options in (
            (contextlib.nullcontext(), {"lr": 0.1}),
            (emulation(), {"lr": torch.tensor(0.1, dtype=dtype), "capturable": True}),
        ):
            torch.manual_seed(0)
            param = torch.nn.Parameter(torch.randn(100))
            param.grad = torch.randn(100)
            optimizer = row.optimizer([param], **options)
            with engine:
                for lr in (0.1, 0.05, 0.0):
                    if isinstance(optimizer.param_groups[0]["lr"], torch.Tensor):
                        optimizer.param_groups[0]["lr"].fill_(lr)
                    else:
                        optimizer.param_groups[0]["lr"] = torch.tensor(lr, dtype=dtype).item()
                    optimizer.step()
            results.append(bits(param))
        assert np.array_equal(*results)


def test_other_options_in_the_devices_memory():
    results = []
    for engine, convert, capturable in (
        (contextlib.nullcontext(), float, False),
        (emulation(), lambda x: torch.tensor(x, dtype=torch.float64), True),
    ):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(100))
        param.grad = torch.randn(100)
        betas, decay = (convert(0.8), convert(0.9)), convert(0.1)
        optimizer = fusedopt.Adam([param], betas=betas, capturable=capturable, foreach=False)
        optimizer.param_groups[0]["weight_decay"] = decay
        with engine:
            for _ in range(3):
                optimizer.step()
        results.append(bits(param))
    assert np.array_equal(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("row", ROWS, ids=ROW_IDS)
def test_grad_scaler(row, dtype):
    """Gradients are divided in the kernel, and written back; as on the CPU, as integers."""
    results = []
    for engine in (contextlib.nullcontext(), emulation()):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in (1, 33, 5000)]
        params.append(torch.nn.Parameter(torch.randn(40, 30).to(dtype).t()))
        optimizer = row.optimizer(params, lr=0.1)
        with engine:
            for found_inf in (1.0, 0.0, 1.0, 0.0, 0.0):
                for param in params:
                    param.grad = torch.randn(param.shape).to(dtype)
                    if found_inf:
                        param.grad.view(-1)[0] = math.inf
                scaled_step(optimizer, 1000.0, found_inf)
        results.append([bits(param) for param in params] + [bits(param.grad) for param in params])
        for param in params:
            if "step" in optimizer.state[param]:
                assert optimizer.state[param]["step"] == 3
    for ours, theirs in zip(*results, strict=True):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("row", ROWS, ids=ROW_IDS)
def test_skipped_step_changes_nothing(row):
    options = row.usual
    param = torch.nn.Parameter(torch.randn(5000))
    optimizer = row.optimizer([param], **options)
    with emulation():
        for steps in range(2):
            if steps:
                param.grad = torch.randn(5000)
                optimizer.step()
                before = [bits(v).copy() for v in optimizer.state[param].values()]
            value = bits(param).copy()
            param.grad = torch.full((5000,), math.inf)
            for found_inf in (1.0, 2.0, math.nan):
                scaled_step(optimizer, 2.0, found_inf)
            assert np.array_equal(bits(param), value)
            assert param.grad.isinf().all()
            if steps:
                after = [bits(v) for v in optimizer.state[param].values()]
                assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
            elif row.name != "Adagrad":
                for state in optimizer.state[param].values():
                    assert not state.any()


@pytest.mark.parametrize(("dampening", "nesterov"), [(0.0, False), (0.5, False), (0.0, True)])
def test_first_buffer_of_sgd_after_skipped_steps(dampening, nesterov):
    """It is a copy of the first gradient that counts, the sign of its zeros included."""
    results = []
    for skipped in (0, 1, 3):
        param = torch.nn.Parameter(-torch.zeros(4))
        optimizer = fusedopt.SGD(
            [param], lr=0.1, momentum=0.9, dampening=dampening, nesterov=nesterov
        )
        with emulation():
            for found_inf in [*[1.0] * skipped, 0.0, 0.0]:
                param.grad = torch.tensor([0.0, -0.0, 1.0, -2.0])
                scaled_step(optimizer, 4.0, found_inf)
        results.append((bits(param), bits(optimizer.state[param]["momentum_buffer"])))
    grad = np.array([0.0, -0.0, 0.25, -0.5], np.float32)
    options = {"lr": 0.1, "momentum": 0.9, "dampening": dampening, "nesterov": nesterov}
    expected, state = reference.sgd(-np.zeros(4, np.float32), grad, {}, **options)
    expected, state = reference.sgd(expected, grad, state, **options)
    for value, buffer in results:
        assert np.array_equal(value, expected.view(np.int32))
        assert np.array_equal(buffer, state["momentum_buffer"].view(np.int32))


def test_parameters_that_share_memory_are_launched_in_order():
    results = []
    for engine in (contextlib.nullcontext(), emulation()):
        torch.manual_seed(0)
        buffer = torch.randn(9000)
        params = [torch.nn.Parameter(buffer[:6000]), torch.nn.Parameter(buffer[3000:])]
        for param in params:
            param.grad = torch.randn(6000)
        with engine:
            fusedopt.SGD(params, lr=0.1, weight_decay=0.5).step()
        results.append(bits(buffer))
    assert emulated.launches() == 2
    assert np.array_equal(*results)


def test_every_element_changes():
    """Against a kernel that leaves out a pack or a block."""
    for dtype in DTYPES:
        param = torch.nn.Parameter(torch.zeros(3 * chunk(dtype) + 5, dtype=dtype))
        param.grad = torch.ones_like(param)
        with emulation():
            fusedopt.SGD([param], lr=0.5).step()
        assert (param == -0.5).all()
