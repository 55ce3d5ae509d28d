"""Updates whose operands are stored in different formats: the reference's bits, on every engine."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulation
from fusedopt import _native, reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.verify import ROUNDINGS, count_mismatches, gradients, isa, threads

# Around the lanes and blocks of a kernel.
SIZES = (1, 15, 33, 257, 1030)
# Of parameter, gradient and states.
MIXES = [mix for mix in itertools.product(DTYPES, repeat=3) if len(set(mix)) > 1]
ENGINES = [*_native.available_isas(), "cuda, emulated"]


def to_array(tensor, arithmetic):
    return tensor.detach().double().numpy().astype(arithmetic)


def name_of(mix):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in mix)


def parameter(values):
    param = torch.nn.Parameter(values)
    if hasattr(param, "grad_dtype"):  # torch 2.9 and later ask first
        param.grad_dtype = None
    return param


def states_after_a_step(case, values, dtype):
    """States away from zero, stored in ``dtype``."""
    param = torch.nn.Parameter(values.double())
    param.grad = values.double() + 1
    optimizer = case.row.optimizer([param], **case.options)
    optimizer.step()
    states = optimizer.state[param]
    return {name: s if name == "step" else s.to(dtype) for name, s in states.items()}


class Trajectory:
    """A parameter and its states as tensors of an optimizer, and as arrays of the reference."""

    def __init__(self, case, size, mix, generator):
        of_param, self.of_grad, of_states = mix
        values = torch.from_numpy(generator.standard_normal(size))
        self.param = parameter(values.to(of_param))
        self.states = states_after_a_step(case, values, of_states)
        has_states = any(name != "step" for name in self.states)
        formats = mix if has_states else mix[:2]
        self.arithmetic = np.float64 if torch.float64 in formats else np.float32
        self.rule = reference.in_formats(
            case.row.reference, ROUNDINGS[of_param], ROUNDINGS[of_states]
        )
        self.expected = to_array(self.param, self.arithmetic)
        self.expected_states = {
            name: int(s.item()) if name == "step" else to_array(s, self.arithmetic)
            for name, s in self.states.items()
        }

    def take_gradient(self, generator, options):
        self.param.grad = gradients(self.param.numel(), self.of_grad, generator)
        grad = to_array(self.param.grad, self.arithmetic)
        self.expected, self.expected_states = self.rule(
            self.expected, grad, self.expected_states, **options
        )

    def mismatches(self):
        pairs = [(self.param, self.expected)]
        pairs += [(self.states[n], a) for n, a in self.expected_states.items() if n != "step"]
        return sum(count_mismatches(to_array(t, self.arithmetic), a) for t, a in pairs)


# All on the fastest instruction set and on the CUDA kernels' body; a few on the others, in which
# only the conversions differ.
RUNS = [(engine, mix) for engine in ENGINES[-2:] for mix in MIXES]
RUNS += [(engine, mix) for engine in ENGINES[:-2] for mix in MIXES[::7]]


@pytest.mark.parametrize(
    ("engine", "mix"), RUNS, ids=lambda v: v if isinstance(v, str) else name_of(v)
)
def test_mixed_formats(engine, mix):
    generator = np.random.default_rng(0)
    with emulation() if "emulated" in engine else isa(engine), threads(2):
        for case in CASES:
            runs = [Trajectory(case, size, mix, generator) for size in SIZES]
            optimizer = case.row.optimizer([run.param for run in runs], **case.options)
            for run in runs:
                optimizer.state[run.param] = run.states
            options = case.row.reference_options(optimizer.param_groups[0])
            for _ in range(3):
                for run in runs:
                    run.take_gradient(generator, options)
                optimizer.step()
            for run in runs:
                assert run.mismatches() == 0, case
                assert optimizer.state[run.param] == run.states
            assert {run.param.dtype for run in runs} == {mix[0]}


@pytest.mark.parametrize("engine", ["cpu", "cuda, emulated"])
def test_strides_and_a_scale(engine):
    """The gradient is stored back in its own format."""
    with emulation() if "emulated" in engine else contextlib.nullcontext():
        param = parameter(torch.ones(6, 8)[:, ::2])
        param.grad = torch.full((4, 6), 3.0, dtype=torch.bfloat16).t()
        optimizer = fusedopt.SGD([param], lr=0.5)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
        optimizer.step()
        assert torch.equal(param.detach(), torch.full((6, 4), 0.25))
        assert torch.equal(param.grad, torch.full((6, 4), 1.5, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_double_is_rounded_once(engine, dtype):
    """Beside the middle of two neighbours, which rounding to float first would fall on."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    low = every[every.isfinite() & (every > 0)]
    high = torch.nextafter(low, torch.full_like(low, torch.inf)).double()
    middle = (low.double() + high)[high.isfinite()] / 2
    near = torch.cat([middle * (1 + 2.0**-50), middle * (1 - 2.0**-50), middle])
    near = torch.cat([near, -near, torch.tensor([1e39, -1e300, torch.inf, torch.nan]).double()])
    param = parameter(torch.zeros(near.numel(), dtype=dtype))
    param.grad = -near
    with emulation() if "emulated" in engine else isa(engine):
        fusedopt.SGD([param], lr=1.0).step()
    expected = ROUNDINGS[dtype](near.numpy())
    assert count_mismatches(to_array(param, np.float64), expected) == 0
    if dtype == torch.float16:  # which torch rounds twice, so not torch's conversion
        assert np.array_equal(expected[:-1], near.numpy().astype(np.float16)[:-1])


def test_states_of_another_format_are_kept():
    """As they were loaded, whatever the parameter's dtype."""
    param = parameter(torch.ones(5, dtype=torch.bfloat16))
    param.grad = torch.ones(5)
    optimizer = fusedopt.Adam([param])
    optimizer.state[param] = {
        "step": torch.tensor(1.0),
        "exp_avg": torch.ones(5),
        "exp_avg_sq": torch.ones(5, dtype=torch.float64),
    }
    optimizer.step()
    dtypes = {name: state.dtype for name, state in optimizer.state[param].items()}
    assert dtypes == {
        "step": torch.float32, "exp_avg": torch.float32, "exp_avg_sq": torch.float64,
    }  # fmt: skip
