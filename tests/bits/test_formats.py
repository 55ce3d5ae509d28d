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
from fusedopt.checking.cases import CASES, DTYPES, Case
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import ROUNDINGS, count_mismatches, gradients, isa, threads
from helpers import bits, parameter

# Around the lanes and blocks of a kernel.
SIZES = (1, 15, 33, 257, 1030)
# Of parameter, gradient and states.
MIXES = [mix for mix in itertools.product(DTYPES, repeat=3) if len(set(mix)) > 1]
ENGINES = [*_native.available_isas(), "cuda, emulated"]


def to_array(tensor, arithmetic):
    return tensor.detach().double().numpy().astype(arithmetic)


def name_of(mix):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in mix)


def states_after_a_step(case, values, dtype):
    """States away from zero, stored in ``dtype``."""
    param = torch.nn.Parameter(values.double())
    param.grad = values.double() + 1
    optimizer = case.row.optimizer([param], **case.options)
    optimizer.step()
    states = optimizer.state[param]
    return {name: s if name == "step" else s.to(dtype) for name, s in states.items()}


def in_formats_of_their_own(rule, of_param, of_each_state):
    """``rule`` for states of which each is stored in another format."""

    def rounded_rule(param, grad, state, **options):
        param, state = rule(param, grad, state, **options)
        for name, dtype in of_each_state.items():
            state[name] = ROUNDINGS[dtype](np.asarray(state[name]))
        return ROUNDINGS[of_param](np.asarray(param)), state

    return rounded_rule


class Trajectory:
    """A parameter and its states as tensors of an optimizer, and as arrays of the reference."""

    def __init__(self, case, size, mix, generator, of_each_state=None):
        of_param, self.of_grad, of_states = mix
        values = torch.from_numpy(generator.standard_normal(size))
        self.param = parameter(values.to(of_param))
        self.states = states_after_a_step(case, values, of_states)
        for name, dtype in (of_each_state or {}).items():
            # With room behind it: whoever reads it in another format finds wrong numbers.
            memory = torch.zeros(8 * size, dtype=dtype)
            self.states[name] = memory[:size].copy_(self.states[name])
        of_all = {state.dtype for name, state in self.states.items() if name != "step"}
        in_double = torch.float64 in {of_param, self.of_grad, *of_all}
        self.arithmetic = np.float64 if in_double else np.float32
        self.rule = (
            in_formats_of_their_own(case.row.reference, of_param, of_each_state)
            if of_each_state
            else reference.in_formats(case.row.reference, ROUNDINGS[of_param], ROUNDINGS[of_states])
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


def cases_with(mix):
    """Those whose number is, modulo 4, the sum of the numbers of the formats.

    Of the mixes of one case any two formats determine the third: an orthogonal array.
    """
    assert len(DTYPES) == 4
    return CASES[sum(map(DTYPES.index, mix)) % 4 :: 4]


@pytest.mark.parametrize(
    ("engine", "mix"), RUNS, ids=lambda v: v if isinstance(v, str) else name_of(v)
)
def test_mixed_formats(engine, mix):
    """Every case with every pair of formats of two operands, and so with a quarter of all mixes.

    Each operand is decoded and encoded by itself, whatever the rule and the other operands are.
    """
    generator = np.random.default_rng(0)
    with emulation() if "emulated" in engine else isa(engine), threads(2):
        for case in cases_with(mix):
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


F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
# The first state has the parameter's format, which a loop for all operands would take for granted.
STATES = [
    (fusedopt.Adam, {}, {"exp_avg": F32, "exp_avg_sq": BF16}),
    (fusedopt.Adam, {}, {"exp_avg": BF16, "exp_avg_sq": F32}),
    (fusedopt.Adam, {}, {"exp_avg": F64, "exp_avg_sq": F32}),
    (
        fusedopt.Adam,
        {"amsgrad": True},
        {"exp_avg": F32, "exp_avg_sq": BF16, "max_exp_avg_sq": F16},
    ),
    (
        fusedopt.RMSprop,
        {"momentum": 0.8, "centered": True},
        {"square_avg": BF16, "momentum_buffer": F32, "grad_avg": F16},
    ),
]


@pytest.mark.parametrize(("optimizer_class", "options", "dtypes"), STATES)
@pytest.mark.parametrize("engine", ENGINES)
def test_every_state_in_a_format_of_its_own(engine, optimizer_class, options, dtypes):
    generator = np.random.default_rng(0)
    dtype = next(iter(dtypes.values()))
    row = next(row for row in ROWS if row.optimizer is optimizer_class)
    case = Case(row, options)
    runs = [Trajectory(case, size, (dtype,) * 3, generator, dtypes) for size in SIZES]
    optimizer = optimizer_class([run.param for run in runs], **options)
    for run in runs:
        optimizer.state[run.param] = run.states
    options = row.reference_options(optimizer.param_groups[0])
    for _ in range(3):
        for run in runs:
            run.take_gradient(generator, options)
        with emulation() if "emulated" in engine else isa(engine), threads(2):
            optimizer.step()
        for run in runs:
            assert run.mismatches() == 0
            assert {name: run.states[name].dtype for name in dtypes} == dtypes


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_not_written(engine, dtype):
    """Every NaN of 16 bits keeps what it carries, although rounding would leave one of them."""
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    for stride in (1, 2):
        param = parameter(torch.zeros(every.numel()))
        param.grad = torch.empty(every.numel() * stride, dtype=dtype)[::stride].copy_(every)
        with emulation() if "emulated" in engine else isa(engine):
            fusedopt.Adam([param]).step()
        assert torch.equal(param.isnan(), every.isnan() | every.isinf())
        assert np.array_equal(bits(param.grad), bits(every))


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
