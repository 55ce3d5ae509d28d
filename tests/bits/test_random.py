"""Random bits, and rounding with them: no draw is used twice, and the mean is the number."""

from __future__ import annotations

import copy
import importlib
import itertools

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import _native, local_tensor, part_of
from fusedopt.reference import philox, random_bits, round_bfloat16_stochastically
from helpers import bits, parameter

# Of Random123: counter, key, and what seven and ten rounds make of them.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     {7: "5f6fb709 0d893f64 4f121f81 4f730a48", 10: "6627e8d5 e169c58d bc57ac4c 9b00dbd8"}),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     {7: "5207ddc2 45165e59 4d8ee751 8c52f662", 10: "408f276d 41c83b0e a20bc7c6 6d5451fd"}),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     {7: "4dfccaba 190a87f0 c47362ba b6b5242a", 10: "d16cfe09 94fdcceb 5001e420 24126ea1"}),
]  # fmt: skip

# Where and when is drawn: the first of each is what the others differ from in one place.
AXES = {
    "seed": (0, 1, 2**32, 2**64 - 1),
    "param": (0, 1, 2, 2**31, 2**32 - 1),
    "operand": (0, 2, 3, 4, 33),
    "step": (1, 2, 2**24, 2**32 - 1),
}
INDEX = np.array(
    [0, 1, 31, 32, 127, 128, 255, 256, 2**11, 2**32 - 1, 2**32, 2**35 - 1, 2**35, 2**35 + 1, 2**50],
    np.uint64,
)


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    low, high = words(key)
    counters = np.array([words(counter)] * 3, np.uint32)
    for rounds, made in expected.items():
        assert philox(counters, high << 32 | low, rounds).tolist() == [words(made)] * 3


@pytest.fixture
def calls(monkeypatch):
    """Every call of the generator, as counters and key; it gives the place of each 16 bits."""
    made = []

    def record(counter, key, *_):
        made.append((counter.copy(), key))
        places = np.arange(4, dtype=np.uint32)
        return np.broadcast_to(places + 4 << np.uint32(16) | places, counter.shape)

    monkeypatch.setattr(importlib.import_module("fusedopt.reference.random"), "philox", record)
    return made


def draw_all(calls, **at):
    """Counter, key and place among the 128 bits, a row for each element of ``at["index"]``."""
    places = random_bits(**at)
    counters, key = calls.pop()
    rows = np.concatenate([counters.astype(np.uint64), places[:, None]], axis=1)
    return np.insert(rows, 0, np.uint64(key), axis=1)


def test_no_draw_is_used_twice(calls):
    """The lattice of large and small numbers along all axes, and a run of elements."""
    drawn = [
        draw_all(calls, index=INDEX, **dict(zip(AXES, at, strict=True)))
        for at in itertools.product(*AXES.values())
    ]
    drawn = np.concatenate(drawn)
    assert len(np.unique(drawn, axis=0)) == len(drawn) == 4 * 5 * 5 * 4 * len(INDEX)
    run = np.arange(2**32 - 5120, 2**32 + 5120, dtype=np.uint64)
    drawn = draw_all(calls, seed=3, param=1, operand=2, step=1, index=run)
    assert len(np.unique(drawn, axis=0)) == len(run)
    assert len(np.unique(drawn[:, :-1], axis=0)) == len(run) // 8  # and no bit is left over


def test_neighbours_have_nothing_in_common():
    """Bits that differ from those of a neighbour, and numbers in each of 256 equal intervals.

    Of 2^20 independent bits 2^19 differ in the mean, with a standard deviation of 2^9; chi-square
    of 256 intervals has the mean 255 and the variance 510. Both lie within 5 deviations.
    """
    index = np.arange(2**16)
    base = {name: values[0] for name, values in AXES.items()}
    drawn = [random_bits(**base, index=index)]
    for name, values in AXES.items():
        drawn += [random_bits(**{**base, name: value}, index=index) for value in values[1:]]
    drawn.append(random_bits(**base, index=index + 1))
    drawn.append(random_bits(**base, index=index + 2**32))
    for one in drawn:
        found = np.bincount(one >> 8, minlength=256)
        assert abs(((found - 256.0) ** 2 / 256).sum() - 255) < 5 * np.sqrt(510)
    for one, other in itertools.combinations(drawn, 2):
        differing = int(np.unpackbits((one ^ other).view(np.uint8)).sum())
        assert abs(differing - 2**19) < 5 * 2**9


# Every binade that bfloat16 has: the exponents of normal numbers, and those of subnormal ones, of
# which the smallest is 2^-133.
BINADES = np.arange(-133, 128)


def numbers_of_binades(generator):
    """One of each binade and sign, none a bfloat16, with two neighbours that are finite."""
    fraction = generator.uniform(1, 1.99, (2, BINADES.size))
    return (np.array([[1], [-1]]) * np.ldexp(fraction, BINADES)).astype(np.float32)


def neighbours_of(number):
    """The two bfloat16 that a float32 lies between, towards zero first."""
    inner = number.view(np.uint32) & np.uint32(0xFFFF0000)
    return inner.view(np.float32), (inner + np.uint32(0x10000)).view(np.float32)


def test_the_mean_over_all_bits_is_the_number():
    """As rationals, in every binade and for both signs."""
    every = np.arange(2**16, dtype=np.uint16)
    for number in numbers_of_binades(np.random.default_rng(0)).ravel():
        rounded = round_bfloat16_stochastically(np.full(every.size, number), every)
        inner, outer = neighbours_of(number)
        is_inner, is_outer = rounded == inner, rounded == outer
        assert (is_inner | is_outer).all()
        # The sum, in units of the number's last place: of integers that a float64 holds.
        ulp = np.spacing(np.abs(number)).astype(np.float64)
        total = is_inner.sum() * (inner / ulp) + is_outer.sum() * (outer / ulp)
        assert total == every.size * (number / ulp)


def test_the_mean_over_drawn_bits_is_near_the_number():
    """Within 4 standard errors of a million draws, in every binade and for both signs."""
    n = 10**6
    drawn = random_bits(seed=1, param=0, operand=0, step=1, index=np.arange(n))
    for number in numbers_of_binades(np.random.default_rng(1)).ravel():
        inner, outer = (float(x) for x in neighbours_of(number))
        rounded = round_bfloat16_stochastically(np.full(n, number), drawn)
        up = (float(number) - inner) / (outer - inner)
        mean = inner + (outer - inner) * np.count_nonzero(rounded == np.float32(outer)) / n
        error = np.sqrt(up * (1 - up) / n) * abs(outer - inner)
        assert abs(mean - float(number)) <= 4 * error


def test_what_is_not_rounded():
    """Every bfloat16, whatever the bits: also infinities; and of NaN one is left."""
    every = (np.arange(2**16, dtype=np.uint32) << np.uint32(16)).view(np.float32)
    expected = np.where(np.isnan(every), np.uint32(0x7FFF0000), every.view(np.uint32))
    for drawn in (0, 1, 0x8000, 0xFFFF):
        rounded = round_bfloat16_stochastically(every, np.full(2**16, drawn, np.uint16))
        assert np.array_equal(rounded.view(np.uint32), expected)
    quiet, signalling = np.array([0x7FC12345, 0xFF812345], np.uint32).view(np.float32)
    rounded = round_bfloat16_stochastically(np.array([quiet, signalling]), np.uint16([0, 0xFFFF]))
    assert (rounded.view(np.uint32) == 0x7FFF0000).all()


def test_beyond_the_largest_bfloat16_is_infinity():
    """As between any other two neighbours, by the distance to where the next one would be."""
    number = np.array([0x7F7F4000, 0xFF7F4000], np.uint32).view(np.float32)[:, None]
    rounded = round_bfloat16_stochastically(number, np.arange(2**16, dtype=np.uint16))
    assert (np.isinf(rounded).sum(axis=1) == 2**14).all()
    largest = np.uint32(0x7F7F0000).view(np.float32)
    assert set(np.abs(rounded).ravel()) == {largest, np.float32(np.inf)}
    assert (np.sign(rounded) == np.sign(number)).all()


# On the engine: zeros in bfloat16, less these numbers, are the numbers as they are rounded.


def zeros_less(numbers):
    param = parameter(torch.zeros(len(numbers), dtype=torch.bfloat16))
    param.grad = torch.from_numpy(-numbers)
    return param


def stored(arrays, *, seed=0, groups=1, without=()):
    """What a step stores of arrays of numbers, one for each parameter, as integers."""
    params = [zeros_less(numbers) for numbers in arrays]
    for index in without:
        params[index].grad = None
    shares = [{"params": params[g::groups]} for g in range(groups)]
    fusedopt.SGD(shares, lr=1, stochastic_rounding=True, seed=seed).step()
    return [bits(param).view(np.uint16) for param in params]


def upper_half(rounded):
    return (rounded.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def test_engine_around_the_groups_of_256(each_isa):
    generator = np.random.default_rng(2)
    sizes = (1, 31, 32, 33, 127, 128, 129, 255, 256, 257, 383, 384, 385, 511, 513)
    arrays = [generator.integers(0, 2**32, n, np.uint32).view(np.float32) for n in sizes]
    seed = 2**63 + 12345
    for number, (array, found) in enumerate(zip(arrays, stored(arrays, seed=seed), strict=True)):
        drawn = random_bits(seed, number, 0, 1, np.arange(array.size))
        expected = round_bfloat16_stochastically(array, drawn)
        assert np.array_equal(found, upper_half(expected))


class Shard(torch.nn.Parameter):
    """A part of a parameter, as far as the engine can see."""


@pytest.fixture(params=[1, 31, 200, 255, 256, 257, 1000])
def first_element(request):
    """The number of a shard's first element in the whole."""
    _native.attach(
        torch, local_tensor, lambda shard: (shard.numel() + request.param, request.param)
    )
    yield request.param
    _native.attach(torch, local_tensor, part_of)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"state_bits": 16}),
        (torch.bfloat16, {"state_bits": 16, "master_weights": True}),
        (torch.bfloat16, {"state_bits": 16, "stochastic_rounding": True}),
        (torch.bfloat16, {"state_bits": 16, "stochastic_rounding": True, "ema_decay": 0.5}),
    ],
    ids=str,
)
def test_a_part_that_begins_within_a_group_has_the_bits_of_the_whole(
    each_isa, first_element, dtype, options
):
    generator = torch.Generator().manual_seed(0)
    for size in (1, 32, 55, 56, 57, 255, 256, 257, 513, 1100):
        wholes = [torch.randn(first_element + size, generator=generator) for _ in range(4)]
        value, *grads = (whole.to(dtype) for whole in wholes)
        whole = torch.nn.Parameter(value.clone())
        shard = Shard(value[first_element:].clone())
        of_whole, of_shard = (fusedopt.Adam([p], lr=0.1, seed=3, **options) for p in (whole, shard))
        for grad in grads:
            whole.grad, shard.grad = grad, grad[first_element:]
            of_whole.step()
            of_shard.step()
        assert np.array_equal(bits(shard), bits(whole)[first_element:]), size
        for name in ("exp_avg", "exp_avg_sq"):
            states = of_shard.state[shard][name], of_whole.state[whole][name][first_element:]
            assert np.array_equal(*map(bits, states)), (size, name)


def test_parameters_and_seeds_get_bits_of_their_own():
    """By the number of the parameter over all groups, with a gradient or without."""
    numbers = np.full(5000, 1 + 2.0**-8, np.float32)  # in the middle of two bfloat16
    first, second, third = stored([numbers] * 3)
    # Each differs in half of the elements, with a standard deviation of 35.
    for one, other in itertools.combinations([first, second, third, *stored([numbers], seed=1)], 2):
        assert abs((one != other).sum() - 2500) < 5 * 36
    grouped = stored([numbers] * 3, groups=2)  # the third stands ahead of the second
    assert np.array_equal(grouped, [first, third, second])
    _, *others = stored([numbers] * 3, without=[0])
    assert np.array_equal(others, [second, third])


def test_every_step_gets_bits_of_its_own_and_a_resumed_run_those_of_the_run():
    generator = torch.Generator().manual_seed(0)
    values, *grads = (torch.randn(777, generator=generator).bfloat16() for _ in range(7))
    options = {"lr": 0.01, "stochastic_rounding": True, "state_bits": 16, "seed": 7}

    def run(param, optimizer, grads):
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        return param, optimizer

    def begin(values):
        param = torch.nn.Parameter(values.clone())
        return param, fusedopt.Adam([param], **options)

    whole, optimizer = run(*begin(values), grads)
    half, saved = run(*begin(values), grads[:3])
    resumed, other = begin(half.detach())
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    run(resumed, other, grads[3:])
    assert np.array_equal(bits(resumed), bits(whole))
    for name in ("exp_avg", "exp_avg_sq"):
        one, two = optimizer.state[whole][name], other.state[resumed][name]
        assert np.array_equal(bits(one), bits(two))
    # The same step with another count rounds otherwise.
    forgetful, other = begin(half.detach())
    other.load_state_dict(copy.deepcopy(saved.state_dict()))
    other.state[forgetful]["step"] += 1
    run(forgetful, other, grads[3:])
    assert not np.array_equal(bits(forgetful), bits(whole))
