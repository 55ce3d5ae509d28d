"""Fewer bytes, and averages, in the CUDA kernels' body, on the CPU: the reference's bits.

Warps update groups of 256 elements there, whose lanes the host runs one after the other.
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
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES, verify_storage
from fusedopt.checking.verify import gradients
from helpers import MATRIX_LAYOUTS, Guarded, bits, parameter, scaled_step

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
GROUP = 256
CHUNK = 8192  # elements that a block updates
CODED = 4096

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)

# Each format of a parameter and of a state, and what a gradient may be beside them; averages.
STORED = [
    (F32, F32, {"state_bits": 8}),
    (F32, BF16, {"state_bits": 16, "seed": 3}),
    (F64, F32, {"state_bits": 8}),
    (BF16, F32, {"stochastic_rounding": True, "state_bits": 16}),
    (BF16, BF16, {"stochastic_rounding": True, "state_bits": 8}),
    (BF16, F64, {"master_weights": True, "state_bits": 16}),
    (BF16, F16, {"master_weights": True, "state_bits": 8}),
    (F16, F16, {"state_bits": 32}),
    (F32, F32, {"ema_decay": 0.75, "l1": 0.25}),
    (F64, F16, {"ema_decay": 1}),
    (BF16, BF16, {"ema_decay": 0.9, "stochastic_rounding": True, "state_bits": 8, "l1": 0.25}),
    (BF16, F32, {"ema_decay": 1, "master_weights": True}),
]
each_storage = pytest.mark.parametrize(
    ("dtype", "grad_dtype", "options"),
    STORED,
    ids=["-".join([str(s[0])[6:], str(s[1])[6:], *map(str, s[2].values())]) for s in STORED],
)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference(case, storage):
    """Scalars and step counts from the host, or from the memory of the device, by turns."""
    turn = CASES.index(case) + STORAGES.index(storage)
    options = {**case.options, "capturable": turn % 2 == 1}
    with emulation(overflows=turn % 3 == 0, seed=turn):
        (result,) = verify_storage(
            replace(case, options=options), storage, [_native.selected_isa()], [1], steps=3
        )
    assert emulated.storage() == ("overflow" if turn % 3 == 0 else "small")
    assert result.elements > 0
    assert result.mismatches == 0, result.first_mismatch


def state_bits_of(optimizer, param):
    """All states of a parameter but for where they are, by name."""
    states = optimizer.state[param]
    return {name: bits(state).copy() for name, state in states.items() if name != "step"}


def assert_same(ours, param, theirs, twin):
    assert np.array_equal(bits(param), bits(twin))
    one, other = state_bits_of(ours, param), state_bits_of(theirs, twin)
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def both_engines():
    return contextlib.nullcontext(), emulation(seed=5)


@each_storage
@pytest.mark.parametrize("offsets", [(0, 0), (1, 0), (0, 3), (2, 2), (5, 4)], ids=str)
def test_every_size_and_offset_around_groups_and_chunks(dtype, grad_dtype, options, offsets):
    """Nothing is touched around an operand, wherever it begins."""
    sizes = (0, 1, 255, 256, 257, CODED - 1, CODED, CODED + 255, CHUNK, CHUNK + 1, 2 * CHUNK + 513)
    generator = np.random.default_rng(8)
    guards, ours, theirs = [], [], []

    def place(values, offset):
        guarded = Guarded(values.numel() + 32, values.dtype, margin=64)
        guards.append(guarded)
        return guarded.view(values.shape, (1,), offset).copy_(values)

    for size in sizes:
        values = torch.from_numpy(generator.standard_normal(size)).to(dtype)
        theirs.append(parameter(values.clone()))
        ours.append(parameter(place(values, offsets[0])))
    optimizer = fusedopt.Adam(ours, lr=0.01, amsgrad=True, **options)
    other = fusedopt.Adam(theirs, lr=0.01, amsgrad=True, **options)
    for step in range(3):
        for param, twin in zip(ours, theirs, strict=True):
            twin.grad = gradients(twin.numel(), grad_dtype, generator)
            param.grad = place(twin.grad, offsets[1])
        other.step()
        with emulation(seed=step + 1):
            optimizer.step()
        for param, twin in zip(ours, theirs, strict=True):
            assert_same(optimizer, param, other, twin)
            if step == 0:
                for name, state in optimizer.state[param].items():
                    if name != "step" and state.shape == param.shape:
                        optimizer.state[param][name] = place(state, offsets[0] + offsets[1])
    for guarded in guards:
        guarded.assert_untouched()


LAYOUTS = {
    **MATRIX_LAYOUTS,
    "as it is": lambda t: t.clone(),
}


@each_storage
@pytest.mark.parametrize("of_grad", LAYOUTS)
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_layouts(of_param, of_grad, dtype, grad_dtype, options):
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(67, 131, generator=generator).to(dtype)
    grads = torch.randn(67, 131, generator=generator).to(grad_dtype)
    results = []
    for engine in both_engines():
        param = parameter(LAYOUTS[of_param](values))
        param.grad = LAYOUTS[of_grad](grads)
        optimizer = fusedopt.Adam([param], weight_decay=0.1, **options)
        with engine:
            for _ in range(2):
                optimizer.step()
        results.append((optimizer, param))
    assert_same(*results[0], *results[1])


def test_one_launch_for_all_formats():
    """Those that are usual are in it, too, each with its own arithmetic."""

    def build():
        torch.manual_seed(0)
        groups = []
        for dtype, grad_dtype, options in [*STORED, (F32, F32, {}), (BF16, BF16, {})]:
            params = [parameter(torch.randn(size).to(dtype)) for size in (5, 0, CHUNK + 300)]
            for param in params:
                param.grad = torch.randn(param.shape).to(grad_dtype)
            groups.append({"params": params, **options})
        return fusedopt.Adam(groups)

    ours, theirs = build(), build()
    for step in range(2):
        theirs.step()
        with emulation(seed=7 + step):
            launches = emulated.launches()
            ours.step()
            assert emulated.launches() == launches + 1
            assert emulated.blocks() == (len(STORED) + 2) * (1 + 2)
    for group, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        for param, twin in zip(group["params"], other["params"], strict=True):
            assert_same(ours, param, theirs, twin)


@pytest.mark.parametrize("first", [256, 1024, 1, 255, 257, 700, 2**40 + 131])
def test_a_part_draws_what_the_whole_does(first):
    """Wherever in a group of calls of the generator it begins."""
    generator = torch.Generator().manual_seed(3)
    numel = 3000
    values = torch.randn(numel, generator=generator).to(BF16)
    param = parameter(values.clone())
    options = {"lr": 0.01, "momentum": 0.9, "state_bits": 16, "seed": 7}
    optimizer = fusedopt.SGD([param], stochastic_rounding=True, **options)
    expected, buffer = values.float().numpy(), np.float32(-0.0)
    index = np.arange(first, first + numel, dtype=np.uint64)
    for step in range(1, 4):
        param.grad = torch.randn(numel, generator=generator).to(BF16)
        with emulation(first=first):
            optimizer.step()
        buffer = np.float32(0.9) * buffer + param.grad.float().numpy()
        expected = expected - np.float32(0.01) * buffer
        rounded = []
        for operand, numbers in ((0, expected), (2, buffer)):
            random = reference.random_bits(7, 0, operand, step, index)
            rounded.append(reference.round_bfloat16_stochastically(numbers, random))
        expected, buffer = rounded
        assert np.array_equal(param.detach().float().numpy(), expected)
        states = optimizer.state[param]
        assert np.array_equal(states["momentum_buffer"].float().numpy(), buffer)


@pytest.mark.parametrize("count", [1, 20, 400])
def test_any_number_of_tensors(count):
    """In a table by value, and in memory."""

    def build(capturable):
        torch.manual_seed(0)
        params = [parameter(torch.randn(3 + n % 5).to(BF16)) for n in range(count)]
        for param in params:
            param.grad = torch.randn(param.shape).to(BF16)
        options = {"state_bits": 16, "stochastic_rounding": True, "capturable": capturable}
        return fusedopt.Adam(params, **options), params

    (ours, params), (theirs, twins) = build(True), build(False)
    for seed in range(1, 4):
        theirs.step()
        with emulation(seed=seed):
            ours.step()
        assert {ours.state[param]["step"].item() for param in params} == {seed}
    assert emulated.storage() == ("overflow" if count > 20 else "small")
    for param, twin in zip(params, twins, strict=True):
        assert_same(ours, param, theirs, twin)


@every_row
@each_storage
def test_grad_scaler(row, dtype, grad_dtype, options):
    """Divided and written back in the kernel; skipped steps change nothing and are not counted."""
    results = []
    for engine in both_engines():
        torch.manual_seed(0)
        params = [parameter(torch.randn(n).to(dtype)) for n in (1, 33, CODED + 5)]
        params.append(parameter(torch.randn(80, 60).to(dtype).t()))
        optimizer = row.optimizer(params, lr=0.1, **row.usual, **options)
        with engine:
            for found_inf in (1.0, 0.0, 1.0, 0.0, 0.0):
                for param in params:
                    param.grad = torch.randn(param.shape).to(grad_dtype)
                    if found_inf:
                        param.grad.view(-1)[0] = math.inf
                scaled_step(optimizer, 1000.0, found_inf)
        results.append((optimizer, params))
    (ours, params), (theirs, twins) = results
    for param, twin in zip(params, twins, strict=True):
        assert_same(ours, param, theirs, twin)
        assert np.array_equal(bits(param.grad), bits(twin.grad))
        assert ours.state[param].get("step", 3) == theirs.state[twin].get("step", 3) == 3


@every_row
@pytest.mark.parametrize("state_bits", [8, 16, 32])
def test_new_states_are_what_they_are_on_the_cpu(row, state_bits):
    """Zeros of either sign, under codes and scales as well; after steps that are skipped, too."""
    grads = torch.tensor([0.0, -0.0, 1.0, -2.0]).repeat(CODED // 4 + 1)
    results = []
    for engine, skipped in ((contextlib.nullcontext(), 0), (emulation(), 0), (emulation(), 2)):
        param = parameter(-torch.zeros(grads.numel()))
        optimizer = row.optimizer([param], lr=0.1, **row.usual, state_bits=state_bits)
        with engine:
            for found_inf in [*[1.0] * skipped, 0.0, 0.0]:
                param.grad = grads.clone()
                scaled_step(optimizer, 4.0, found_inf)
        results.append((optimizer, param))
    assert_same(*results[0], *results[1])
    assert_same(*results[0], *results[2])


def test_every_element_changes():
    """Against a kernel that leaves out a lane, a pack or a group."""
    for dtype, grad_dtype, options in STORED:
        param = parameter(torch.zeros(3 * CHUNK + 5, dtype=dtype))
        param.grad = torch.ones(param.shape, dtype=grad_dtype)
        with emulation():
            optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.9, **options)
            optimizer.step()
        assert (param == -0.5 + 0.5 * options.get("l1", 0)).all()
        assert torch.equal(optimizer.state[param].get("ema", param).to(dtype), param)
