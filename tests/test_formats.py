"""Updates whose operands are stored in different formats: bits of the reference, on every engine."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch

from emulation import emulation
from fusedopt import _native, reference
from fusedopt.cases import CASES, DTYPES
from fusedopt.verify import count_mismatches, gradients, isa, threads

# Around the lanes and blocks of a kernel.
SIZES = (1, 15, 33, 257, 1030)
ROUNDINGS = {
    torch.float32: lambda x: x.astype(np.float32).astype(x.dtype),
    torch.float64: lambda x: x,
    torch.bfloat16: reference.round_bfloat16,
    torch.float16: reference.round_float16,
}
MIXES = [
    mix for mix in itertools.product(DTYPES, repeat=3) if len(set(mix)) > 1
]  # parameter, gradient, states
ENGINES = [*_native.available_isas(), "cuda, emulated"]


def arithmetic_of(mix):
    return np.float64 if torch.float64 in mix else np.float32


def to_array(tensor, arithmetic):
    return tensor.detach().double().numpy().astype(arithmetic)


def name_of(mix):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in mix)


def first_states(case, size, dtype, arithmetic, generator):
    """States away from zero, as after some steps, in ``dtype``."""
    param = torch.nn.Parameter(torch.ones(size, dtype=torch.float64))
    param.grad = torch.from_numpy(generator.standard_normal(size))
    optimizer = case.row.optimizer([param], **case.options)
    optimizer.step()
    states = {
        name: value if name == "step" else value.to(dtype)
        for name, value in optimizer.state[param].items()
    }
    arrays = {
        name: int(value.item()) if name == "step" else to_array(value, arithmetic)
        for name, value in states.items()
    }
    return states, arrays


@pytest.mark.parametrize("mix", MIXES, ids=name_of)
@pytest.mark.parametrize("engine", ENGINES)
def test_mixed_formats(engine, mix):
    of_param, of_grad, of_states = mix
    arithmetic = arithmetic_of(mix)
    generator = np.random.default_rng(0)
    on_engine = emulation() if "emulated" in engine else isa(engine)
    with on_engine, threads(2), np.errstate(all="ignore"):
        for case in CASES[:: 1 if arithmetic == np.float32 else 3]:
            params, expected = [], []
            for size in SIZES:
                values = torch.from_numpy(generator.standard_normal(size)).to(of_param)
                param = torch.nn.Parameter(values)
                if hasattr(param, "grad_dtype"):
                    param.grad_dtype = None
                params.append(param)
                expected.append(to_array(param, arithmetic))
            optimizer = case.row.optimizer(params, **case.options)
            options = case.row.reference_options(optimizer.param_groups[0])
            rule = reference.in_formats(
                case.row.reference, ROUNDINGS[of_param], ROUNDINGS[of_states]
            )
            states = []
            for param in params:
                own, arrays = first_states(case, param.numel(), of_states, arithmetic, generator)
                optimizer.state[param] = own
                states.append(arrays)
            for _ in range(3):
                for k, param in enumerate(params):
                    grad = gradients(param.numel(), of_grad, generator)
                    param.grad = grad
                    expected[k], states[k] = rule(
                        expected[k], to_array(grad, arithmetic), states[k], **options
                    )
                optimizer.step()
            for param, value, arrays in zip(params, expected, states, strict=True):
                assert param.dtype == of_param
                assert count_mismatches(to_array(param, arithmetic), value) == 0, case
                for name, array in arrays.items():
                    state = optimizer.state[param][name]
                    if name != "step":
                        assert state.dtype == of_states
                        actual = to_array(state, arithmetic)
                        assert count_mismatches(actual, array) == 0, (case, name)


@pytest.mark.parametrize("engine", ["cpu", "cuda, emulated"])
def test_mixed_formats_with_strides_and_a_scale(engine):
    """The gradient is stored back in its own format."""
    with emulation() if "emulated" in engine else contextlib.nullcontext():
        param = torch.nn.Parameter(torch.ones(6, 8)[:, ::2])
        param.grad_dtype = None
        param.grad = torch.full((4, 6), 3.0, dtype=torch.bfloat16).t()
        optimizer = CASES[0].row.optimizer([param], lr=0.5)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        optimizer.step()
        assert torch.equal(param.detach(), torch.full((6, 4), 0.25))
        assert torch.equal(param.grad, torch.full((6, 4), 1.5, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_double_is_rounded_once(dtype):
    """Next to the middle of two neighbours, where rounding to float first would end at it."""
    generator = np.random.default_rng(1)
    bits = generator.integers(0, 1 << 16, 4000, dtype=np.uint16)
    low = torch.from_numpy(bits.view(np.int16)).view(dtype).double()
    low = low[low.isfinite() & (low != 0)]
    high = torch.from_numpy((bits + 1).view(np.int16)).view(dtype).double()[: low.numel()]
    middle = (low + torch.nextafter(low.to(dtype), torch.full_like(low, 1e9).to(dtype))) / 2
    del high
    near = torch.cat([middle * (1 + 2.0**-50), middle * (1 - 2.0**-50), middle])
    near = near[near.isfinite()]
    param = torch.nn.Parameter(torch.zeros(near.numel(), dtype=dtype))
    if hasattr(param, "grad_dtype"):
        param.grad_dtype = None
    param.grad = -near
    CASES[0].row.optimizer([param], lr=1.0).step()
    rounded = ROUNDINGS[dtype](near.numpy())
    assert count_mismatches(to_array(param, np.float64), rounded) == 0
