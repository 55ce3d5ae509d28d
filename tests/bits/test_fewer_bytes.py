"""What other libraries lose where they store numbers in fewer bits, and these keep."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import reference
from fusedopt.checking.rows import ROWS
from helpers import Guarded, bits, parameter

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
CODED = 4096  # elements of a parameter whose states are codes
BLOCK = 256
STEPS = 1000

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def step(optimizer, *grads):
    """Of all parameters, of which there is one for each gradient."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


def numbers_of_states(states):
    """Bits of all states but the step count, by name."""
    return {name: bits(state).copy() for name, state in states.items() if name != "step"}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


@every_row
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (F32, {"state_bits": 8}),
        (F32, {"state_bits": 16}),
        (BF16, {"state_bits": 8, "stochastic_rounding": True}),
        (BF16, {"state_bits": 16, "master_weights": True}),
    ],
)
def test_a_gradient_that_is_always_zero_moves_nothing(row, dtype, options):
    """Beside others that are not, in the same blocks: every other element, and the last block."""
    generator = torch.Generator().manual_seed(0)
    is_zero = torch.arange(CODED) % 2 == 0
    is_zero[-BLOCK:] = True
    # Zeros, which the smallest of updates would move.
    values = torch.randn(CODED, generator=generator).masked_fill(is_zero, 0.0)
    param = parameter(values.to(dtype))
    before = bits(param).copy()
    grads = [torch.randn(CODED, generator=generator) for _ in range(4)]
    grads = [grad.masked_fill(is_zero, 0.0).to(dtype) for grad in grads]
    optimizer = row.optimizer([param], lr=row.lr, weight_decay=0.0, **row.usual, **options)
    for i in range(STEPS):
        step(optimizer, grads[i % 4])
    assert np.array_equal(bits(param)[is_zero], before[is_zero])
    assert (bits(param)[~is_zero] != before[~is_zero]).mean() > 0.9


DECAYING = pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(fusedopt.SGD, {"lr": 0.1, "weight_decay": 1e-3}),
     (fusedopt.AdamW, {"lr": 1e-3, "weight_decay": 0.1})],
)  # fmt: skip


def decayed(optimizer_class, dtype, options):
    """Ones that nothing but the decay of 1e-4 a step changes, in 1,000 steps."""
    param = parameter(torch.ones(CODED, dtype=dtype))
    optimizer = optimizer_class([param], **options)
    for _ in range(STEPS):
        step(optimizer, torch.zeros(CODED, dtype=dtype))
    return param.detach(), optimizer.state[param]


@DECAYING
def test_decay_alone_follows_float32_in_the_mean(optimizer_class, options):
    """Rounded stochastically; to nearest it stands still.

    In a step a number falls by d, with a variance of less than d times the distance of two
    bfloat16, 2^-8: so a number that has fallen by D has a variance of less than D / 2^8.
    """
    expected = 0.9999**STEPS
    exact, _ = decayed(optimizer_class, F32, options)
    assert np.allclose(exact, expected, rtol=STEPS * 2.0**-23, atol=0)
    to_nearest, _ = decayed(optimizer_class, BF16, options)
    assert (to_nearest == 1).all()
    rounded, _ = decayed(optimizer_class, BF16, {**options, "stochastic_rounding": True})
    error = np.sqrt((1 - expected) * 2.0**-8 / CODED)
    assert abs(rounded.double().mean().item() - expected) < 4 * error
    assert rounded.double().std() > 0.5 * error * np.sqrt(CODED)


@DECAYING
def test_decay_alone_follows_float32_to_the_bit_with_a_master(optimizer_class, options):
    exact, _ = decayed(optimizer_class, F32, options)
    param, states = decayed(optimizer_class, BF16, {**options, "master_weights": True})
    master = reference.join_master(bits(param).view(np.uint16), states["param_remainder"].numpy())
    assert np.array_equal(master.view(np.int32), bits(exact))


def second_moment(dtype, beta2, **options):
    """Of Adam, after a step with ones and 1,000 with zeros."""
    param = parameter(torch.zeros(CODED, dtype=dtype))
    optimizer = fusedopt.Adam([param], betas=(0.9, beta2), **options)
    step(optimizer, torch.ones(CODED, dtype=dtype))
    first = optimizer.state[param]["exp_avg_sq"].double()
    for _ in range(STEPS):
        step(optimizer, torch.zeros(CODED, dtype=dtype))
    return first, optimizer.state[param]["exp_avg_sq"].double()


@pytest.mark.parametrize("bits_of_state", [32, 16, 8])
def test_rare_gradients_take_steps_that_the_rate_bounds(bits_of_state):
    """Rows of an embedding whose gradients are rare, and in columns of very different size.

    A step of Adam is below ``(1 - beta1) / sqrt(1 - beta2)``, 3.2, times the rate (section 2.1 of
    its paper). A code is off by a factor of less than two where it is not zero.
    """
    generator = torch.Generator().manual_seed(0)
    shape, lr = (500, 64), 1e-3
    param = torch.nn.Parameter(torch.zeros(shape))
    optimizer = fusedopt.AdamW([param], lr=lr, weight_decay=0, state_bits=bits_of_state)
    frequencies = 1 / torch.arange(1.0, shape[0] + 1) ** 1.2
    sizes = torch.logspace(0, -5, shape[1])
    for _ in range(300):
        rows = torch.multinomial(frequencies, 32, replacement=True, generator=generator)
        grads = torch.randn((32, shape[1]), generator=generator) * sizes
        before = param.detach().clone()
        step(optimizer, torch.zeros(shape).index_add_(0, rows, grads))
        assert (param.detach() - before).abs().max() < 2 * 3.2 * lr


def test_a_second_moment_of_16_bits_falls_when_gradients_vanish():
    """To nearest it never does, which is why states of 16 bits are rounded stochastically.

    As a number it falls with a variance of less than its fall times the distance of two bfloat16, a
    128th of it at most.
    """
    first, last = second_moment(BF16, 0.999)
    assert torch.equal(first, last)
    first, last = second_moment(F32, 0.999, state_bits=16)
    begin = 1 - 0.999
    expected = begin * 0.999**STEPS
    error = np.sqrt((begin - expected) * begin / 128 / CODED)
    assert abs(first.mean().item() - begin) < 4 * begin / 256 / np.sqrt(CODED)
    assert abs(last.mean().item() - expected) < 4 * error


@every_row
@pytest.mark.parametrize("bits_of_state", [8, 16])
@pytest.mark.parametrize("exponent", [-100, 100])
def test_states_of_any_scale_survive(row, bits_of_state, exponent):
    """At 1e-30 and 1e30 they have the digits that they have at 1.

    Where a state is one of squares, gradients have half the exponent. Adadelta's second state is of
    the size of its epsilon, whatever the gradients are.
    """
    signs = reference.STATES[row.rule]
    if not all(signs.values()):
        exponent //= 2
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(CODED, generator=generator) for _ in range(4)]
    found = []
    for scale in (1.0, 2.0**exponent):
        param = parameter(torch.zeros(CODED))
        optimizer = row.optimizer([param], **row.usual, state_bits=bits_of_state)
        for grad in grads:
            step(optimizer, grad * scale)
        found.append(optimizer.state[param])
    one, scaled = found
    names = [name for name in signs if name in one and name != "acc_delta"]
    assert names
    for name in names:
        power = exponent * (1 if signs[name] else 2)
        if bits_of_state == 16:
            assert torch.equal(scaled[name].double(), one[name].double() * 2.0**power), name
            continue
        assert torch.equal(scaled[name], one[name]), name
        scales = one[name + "_scale"] * 2.0**power
        assert torch.equal(scaled[name + "_scale"], scales), name


SPECIAL_AT = 300  # which is in the second block


def run_with(row, options, special_steps, special, generator):
    """Parameter and states after each of six steps, some of them with a special gradient."""
    param = parameter(torch.randn(CODED, generator=generator))
    optimizer = row.optimizer([param], **row.usual, **options)
    for i in range(6):
        grad = torch.randn(CODED, generator=generator)
        # Until then its state is zero, and so is what it becomes where there are codes.
        grad[SPECIAL_AT] = special if i in special_steps else 0.0
        step(optimizer, grad)
        states = {name: s.clone() for name, s in optimizer.state[param].items() if name != "step"}
        yield param.detach().clone(), states


def elements(tensor):
    """Those but one; of scales all."""
    return tensor if tensor.numel() < CODED else np.delete(bits(tensor), SPECIAL_AT)


@every_row
@pytest.mark.parametrize("options", [{"state_bits": 8}, {"state_bits": 16}], ids=["8", "16"])
def test_a_nan_poisons_its_own_element(row, options):
    """With 8 bits its state becomes zero, so that its block never takes notice of it."""
    runs = [
        run_with(row, options, steps, torch.nan, torch.Generator().manual_seed(2))
        for steps in ((), (2, 3))
    ]
    for i, ((clean, clean_states), (spoilt, states)) in enumerate(zip(*runs, strict=True)):
        assert spoilt[SPECIAL_AT].isnan() == (i >= 2)
        assert np.array_equal(elements(spoilt), elements(clean))
        for name in states:
            assert np.array_equal(elements(states[name]), elements(clean_states[name])), name


@every_row
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("options", [{"state_bits": 8}, {"state_bits": 16}], ids=["8", "16"])
def test_an_infinity_poisons_its_own_element(row, options, sign):
    """With 8 bits it becomes the largest number of its block, when all others are as without it.

    From then on it counts as one of that size. Other blocks never take notice of it, nor does any
    element with 16 bits.
    """
    runs = [
        run_with(row, options, steps, sign * torch.inf, torch.Generator().manual_seed(3))
        for steps in ((), (2,))
    ]
    block = SPECIAL_AT // BLOCK
    is_other = np.arange(CODED - 1) // BLOCK != block
    for i, ((clean, clean_states), (spoilt, states)) in enumerate(zip(*runs, strict=True)):
        assert spoilt[SPECIAL_AT].isfinite() == (i < 2)
        is_same = is_other if i > 2 and options["state_bits"] == 8 else slice(None)
        assert np.array_equal(elements(spoilt)[is_same], elements(clean)[is_same])
        for name in states:
            assert states[name].shape == clean_states[name].shape
            scales = states[name].numel() < CODED
            where = np.arange(CODED // BLOCK) != block if scales and i > 2 else slice(None)
            one, other = elements(states[name]), elements(clean_states[name])
            where = where if scales else is_same
            assert np.array_equal(one[where], other[where]), name


STORAGES = [
    (F32, {"state_bits": 32}),
    (F32, {"state_bits": 16}),
    (F32, {"state_bits": 8}),
    (F64, {"state_bits": 8}),
    (F16, {"state_bits": 16}),
    (BF16, {"stochastic_rounding": True}),
    (BF16, {"stochastic_rounding": True, "state_bits": 8}),
    (BF16, {"master_weights": True, "state_bits": 16}),
]


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
@pytest.mark.parametrize(("of_param", "options"), STORAGES)
def test_gradients_are_not_written(of_param, options, dtype, each_isa):
    """Not even the bits that a NaN carries; nor where they lie with gaps."""
    size = torch.finfo(dtype).bits // 8
    for stride in (1, 3):
        generator = np.random.default_rng(4)
        random = torch.from_numpy(generator.integers(0, 256, (CODED + 9) * stride * size, np.uint8))
        memory = random.view(dtype)
        before = bits(memory).copy()
        param = parameter(torch.zeros(CODED + 9, dtype=of_param))
        optimizer = fusedopt.Adam([param], **options)
        for _ in range(2):
            step(optimizer, memory[::stride])
        assert memory.isnan().any()
        assert np.array_equal(bits(memory), before)


def in_memory(tensor):
    """The elements of a dense tensor as they follow each other in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


LAYOUTS = {
    "transposed": lambda flat: flat.view(72, 60).t(),
    "channels last": lambda flat: flat.view(9, 8, 6, 10).permute(0, 3, 1, 2),
    "permuted": lambda flat: flat.view(12, 20, 18).permute(1, 2, 0),
}
LAID_OUT = [
    (F32, {"state_bits": 16}),
    (F32, {"state_bits": 8}),
    (BF16, {"stochastic_rounding": True, "state_bits": 8}),
    (BF16, {"master_weights": True, "state_bits": 16}),
]
LAID_OUT_IDS = ["16", "8", "stochastic-8", "master-16"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "options"), LAID_OUT, ids=LAID_OUT_IDS)
def test_elements_count_in_the_order_of_memory(layout, dtype, options):
    """Whatever the dimensions, and whatever the gradient's layout: blocks and bits are the same."""
    generator = torch.Generator().manual_seed(5)
    flat = torch.randn(4320, generator=generator).to(dtype)
    param, line = parameter(LAYOUTS[layout](flat.clone())), parameter(flat.clone())
    shape, stride = param.shape, param.stride()
    optimizer, other = (fusedopt.Adam([p], lr=0.01, **options) for p in (param, line))
    for i in range(4):
        grad = torch.randn(4320, generator=generator).to(dtype)
        laid_out = LAYOUTS[layout](grad)
        step(optimizer, laid_out if i % 2 else laid_out.contiguous())
        step(other, grad)
        assert (param.shape, param.stride()) == (shape, stride)
        assert np.array_equal(bits(in_memory(param)), bits(line))
        for name, state in optimizer.state[param].items():
            assert state.shape in (shape, (), (17,)), name
            of_line = other.state[line][name]
            assert np.array_equal(bits(in_memory(state)), bits(in_memory(of_line))), name


@pytest.mark.parametrize("stride", [(200, 2), (3, 190)])
@pytest.mark.parametrize(("dtype", "options"), LAID_OUT, ids=LAID_OUT_IDS)
def test_gaps_are_not_touched(dtype, options, stride):
    """Without its gaps the parameter has the same bits."""
    generator = torch.Generator().manual_seed(6)
    values = torch.randn((60, 72), generator=generator).to(dtype)
    guarded = Guarded(72 * 200, dtype)
    param = parameter(guarded.view((60, 72), stride).copy_(values))
    dense = parameter(values if stride[1] < stride[0] else values.t().contiguous().t())
    optimizer, other = (fusedopt.Adam([p], lr=0.01, **options) for p in (param, dense))
    for _ in range(3):
        grad = torch.randn((60, 72), generator=generator).to(dtype)
        step(optimizer, grad)
        step(other, grad)
    assert np.array_equal(bits(param), bits(dense))
    assert_same(numbers_of_states(optimizer.state[param]), numbers_of_states(other.state[dense]))
    guarded.assert_untouched()


I16, U8 = torch.int16, torch.uint8


@pytest.mark.parametrize(
    ("numel", "dtype", "options", "expected"),
    [
        (CODED, BF16, {"state_bits": 32}, {"exp_avg": F32, "exp_avg_sq": F32}),
        (CODED, F64, {"state_bits": 16}, {"exp_avg": BF16, "exp_avg_sq": BF16}),
        (CODED, F32, {"state_bits": 8}, {"exp_avg": U8, "exp_avg_sq": U8}),
        (CODED + 1, BF16, {"state_bits": 8}, {"exp_avg": U8, "exp_avg_sq": U8}),
        (CODED - 1, BF16, {"state_bits": 8}, {"exp_avg": F32, "exp_avg_sq": F32}),
        (9, BF16, {"stochastic_rounding": True}, {"exp_avg": BF16, "exp_avg_sq": BF16}),
        (
            CODED, BF16, {"master_weights": True, "state_bits": 8, "amsgrad": True},
            {"exp_avg": U8, "exp_avg_sq": U8, "max_exp_avg_sq": U8, "param_remainder": I16},
        ),
    ],
)  # fmt: skip
def test_states_by_their_dtypes_and_shapes(numel, dtype, options, expected):
    param = parameter(torch.ones(numel, dtype=dtype))
    optimizer = fusedopt.Adam([param], **options)
    step(optimizer, torch.ones(numel))
    found = {name: (s.dtype, s.shape) for name, s in optimizer.state[param].items()}
    coded = [name for name, dtype in expected.items() if dtype == U8]
    assert found == {
        "step": (F32, ()),
        **{name: (dtype, (numel,)) for name, dtype in expected.items()},
        **{name + "_scale": (F32, (-(-numel // BLOCK),)) for name in coded},
    }


def test_steps_are_counted_where_rounding_needs_it():
    for options in ({"stochastic_rounding": True}, {"state_bits": 16}, {"state_bits": 8}):
        param = parameter(torch.ones(9, dtype=BF16))
        optimizer = fusedopt.SGD([param], **options)
        step(optimizer, torch.ones(9))
        counted = {} if options.get("state_bits") == 8 else {"step": 1.0}
        assert {name: state.item() for name, state in optimizer.state[param].items()} == counted
