"""Native kernels give the reference's bits: 0 mismatches, compared as integers."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulation
from fusedopt import reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.verify import (
    count_mismatches,
    gradients,
    isa,
    reference_rule,
    threads,
    to_array,
    verify_case,
)
from helpers import ISAS, ISAS_OF_KERNELS, bits, scaled_step

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference(case, dtype):
    for result in verify_case(case, dtype, ISAS_OF_KERNELS, [1, 3]):
        assert result.elements > 0
        assert result.mismatches == 0, result.first_mismatch
        # Cancellation inside the root of the centered variance is the formula's own.
        assert result.ulp < (100 if case.options.get("centered") else 10)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("rule", ["Adam", "SGD"])
def test_every_size_and_offset_around_the_vector_width(each_isa, rule, dtype):
    case = next(c for c in CASES if c.row.name == rule and c.options)
    generator = np.random.default_rng(3)
    expected_rule = reference_rule(case, dtype)
    for size in [*range(70), 127, 128, 129, 511, 512, 513, 1023, 1024, 1025]:
        offset = size % 5
        memory = torch.zeros(size + 16, dtype=dtype)
        param = torch.nn.Parameter(memory[offset : offset + size].normal_())
        param.grad = gradients(size, dtype, generator)
        optimizer = case.row.optimizer([param], **case.options)
        options = case.row.reference_options(optimizer.param_groups[0])
        expected = (to_array(param), {})
        for _ in range(2):
            expected = expected_rule(expected[0], to_array(param.grad), expected[1], **options)
            optimizer.step()
        assert count_mismatches(to_array(param), expected[0]) == 0, size
        assert not memory[:offset].any()
        assert not memory[offset + size :].any()


def test_a_step_changes_every_element(each_isa):
    """Against a kernel that skips blocks, which a comparison on gradients of zero would miss."""
    for dtype in DTYPES:
        for row_case in (c for c in CASES if not c.options):
            param = torch.nn.Parameter(torch.zeros(3001, dtype=dtype))
            param.grad = torch.ones(3001, dtype=dtype)
            row_case.row.optimizer([param], lr=0.5).step()
            assert (param != 0).all(), (row_case, dtype)


STORED = [
    (torch.float32, {}),
    (torch.float32, {"state_bits": 16}),
    (torch.float32, {"state_bits": 8}),
    (torch.bfloat16, {"master_weights": True}),
    (torch.bfloat16, {"stochastic_rounding": True, "state_bits": 16}),
]


@pytest.mark.parametrize(("dtype", "options"), STORED, ids=str)
def test_every_thread_count_gives_the_same_bits(dtype, options):
    sizes = [1, 70_001, 3, 250_007, 64]
    grads = [torch.randn(n, dtype=dtype) for n in sizes]
    results = []
    for count in range(1, 9):
        torch.manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(n, dtype=dtype)) for n in sizes]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer = fusedopt.AdamW(params, **options)
        with threads(count):
            for _ in range(3):
                optimizer.step()
        states = [value for param in params for value in optimizer.state[param].values()]
        results.append([bits(tensor) for tensor in (*params, *states)])
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_one_parameter_large_enough_for_all_cuts():
    """Cuts inside one tensor, at every thread count, with a 16-bit and a strided neighbour."""
    for count in (2, 3, 5):
        params = [
            torch.nn.Parameter(torch.randn(100_003)),
            torch.nn.Parameter(torch.randn(100_003).bfloat16()),
            torch.nn.Parameter(torch.randn(100_003, 2)[:, 1]),
        ]
        copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
        for param, copy in zip(params, copies, strict=True):
            param.grad = torch.randn_like(param)
            copy.grad = param.grad.clone()
        with threads(count):
            fusedopt.Adam(params).step()
        with threads(1):
            for copy in copies:
                fusedopt.Adam([copy]).step()
        for param, copy in zip(params, copies, strict=True):
            assert np.array_equal(bits(param), bits(copy))


def test_a_nan_in_amsgrads_maximum_stays(each_isa):
    """A checkpoint may hold one beside a finite ``exp_avg_sq``, which no step of ours leaves so."""
    param = torch.nn.Parameter(torch.ones(40))
    param.grad = torch.ones(40)
    optimizer = fusedopt.Adam([param], amsgrad=True)
    optimizer.step()
    optimizer.state[param]["max_exp_avg_sq"][::3] = torch.nan
    optimizer.step()
    is_nan = torch.zeros(40, dtype=torch.bool)
    is_nan[::3] = True
    assert torch.equal(optimizer.state[param]["max_exp_avg_sq"].isnan(), is_nan)
    assert torch.equal(param.isnan(), is_nan)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_conversions_of_every_value(each_isa, dtype):
    """lr 0 leaves every one of the 65,536 values as it was: widening and narrowing are inverse."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    param = torch.nn.Parameter(values.clone())
    param.grad = torch.zeros_like(values)
    fusedopt.SGD([param], lr=0.0).step()
    finite = ~values.isnan()
    # -0 - 0 * 0 is -0, and everything else minus 0 is itself.
    assert np.array_equal(bits(param)[finite.numpy()], bits(values)[finite.numpy()])
    assert param.isnan()[~finite].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_rounding_is_to_nearest_even(each_isa, dtype):
    """param - lr * grad hits ties, carries, subnormals and overflow when it is stored."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(-(1 << 15), 1 << 15, (200_000,), generator=generator, dtype=torch.int32)
    param = torch.nn.Parameter(start.to(torch.int16).view(dtype).clone())
    grad = torch.randint(-(1 << 15), 1 << 15, (200_000,), generator=generator, dtype=torch.int32)
    param.grad = grad.to(torch.int16).view(dtype)
    with np.errstate(all="ignore"):
        wide = to_array(param) - np.float32(0.5) * to_array(param.grad)
    fusedopt.SGD([param], lr=0.5).step()
    expected = torch.from_numpy(wide).to(dtype).float().numpy()
    assert count_mismatches(to_array(param), expected) == 0
    rounding = {
        torch.bfloat16: reference.round_bfloat16,
        torch.float16: reference.round_float16,
    }[dtype]
    assert count_mismatches(rounding(wide), expected) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("engine", [*ISAS, "emulated CUDA"])
def test_16_bit_nan_of_the_largest_payload(engine, dtype):
    """Rounded like a number, it would carry into the sign and become -0."""
    (nan,) = struct.unpack("<d", b"\xff" * 7 + b"\x7f")
    param = torch.nn.Parameter(torch.ones(67, dtype=dtype))
    # The only option of any rule that may be NaN; the first step does not apply it.
    optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.5, dampening=nan)
    with emulation() if engine == "emulated CUDA" else isa(engine):
        for _ in range(2):
            param.grad = torch.ones_like(param)
            optimizer.step()
    assert param.isnan().all()
    assert optimizer.state[param]["momentum_buffer"].isnan().all()


NANS = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF812345, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
NARROW_NAN = 0x7FFF


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("engine", [*ISAS, "emulated CUDA"])
def test_every_16_bit_nan_that_is_stored_is_the_same(engine, dtype):
    """That of PTX, whatever the sign, in whole registers and in what is left behind them."""
    param = torch.nn.Parameter(torch.ones(531, dtype=dtype))
    optimizer = fusedopt.Adam([param], maximize=True)
    grad = torch.tensor([float("inf"), -float("inf"), float("nan"), -float("nan")] * 133)[:531]
    with emulation() if engine == "emulated CUDA" else isa(engine):
        for sign in (1, -1):
            param.grad = (sign * grad).to(dtype)
            scaled_step(optimizer, 2.0)
    stored = [
        param,
        param.grad,
        *(optimizer.state[param][name] for name in ("exp_avg", "exp_avg_sq")),
    ]
    for tensor in stored:
        is_nan = tensor.isnan().numpy()
        assert is_nan.sum() >= 264
        assert set(bits(tensor)[is_nan]) == {NARROW_NAN}


@pytest.mark.parametrize(
    ("rounding", "narrow"),
    [
        (reference.round_bfloat16, lambda x: (x.view(np.uint32) >> 16).astype(np.uint16)),
        (reference.round_float16, lambda x: x.astype(np.float16).view(np.uint16)),
    ],
    ids=["bfloat16", "float16"],
)
def test_nan_of_the_reference_in_16_bits(rounding, narrow):
    assert (narrow(rounding(NANS.view(np.float32))) == NARROW_NAN).all()


def test_flush_to_zero_modes_of_the_caller_change_nothing():
    subnormal = torch.finfo(torch.float32).smallest_normal / 8
    results = []
    for flush in (False, True):
        param = torch.nn.Parameter(torch.full((100_000,), subnormal))
        param.grad = torch.full((100_000,), subnormal)
        optimizer = fusedopt.SGD([param], lr=0.5)
        supported = torch.set_flush_denormal(flush)
        try:
            optimizer.step()
        finally:
            torch.set_flush_denormal(False)
        results.append(bits(param))
    if not supported:
        pytest.skip("this CPU has no flush-to-zero mode")
    assert results[0].all()
    assert np.array_equal(results[0], results[1])


def test_isa_context_selects():
    for name in ISAS:
        with isa(name):
            assert fusedopt._native.selected_isa() == name
