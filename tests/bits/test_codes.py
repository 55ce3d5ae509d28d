"""Numbers in 8 bits: their values, which code a number gets, and the engine's beside the reference.

Of the code see ``fusedopt/reference/codes.py``.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import reference
from fusedopt.reference.codes import block_scales

BLOCK = 256
ONE = 255
ZERO = {True: 127, False: 0}
KINDS = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])

# All normal powers of two, one for each row of what has a block a row.
POWERS = np.exp2(np.arange(-126.0, 128)).astype(np.float32)[:, None]


def part_of(code, signed):
    """Sign, exponent, number of parts and part of a code that is neither 0 nor 1."""
    if signed:
        k = code - 128 if code > 127 else 126 - code
        e = int(math.log2(k + 1))
        return (1 if code > 127 else -1), e, 2**e, k + 1 - 2**e
    k = code - 1
    e = int(math.log2(k + 2)) - 1
    return 1, e, 2 ** (e + 1), k + 2 - 2 ** (e + 1)


def value_of(code, signed):
    """The definition, one code at a time: as a float32, and exactly."""
    if code in (ZERO[signed], ONE):
        return np.float32(code == ONE), Fraction(int(code == ONE))
    sign, e, parts, j = part_of(code, signed)
    f = np.float32
    value = f(10.0 ** (e - 6)) * (f(0.1) + f(0.9) * (f(j + 0.5) / f(parts)))
    exact = Fraction(10) ** (e - 6) * (
        Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 * parts)
    )
    return f(sign) * value, sign * exact


def encode(relative, signed):
    """Codes for a scale of 1, which one more element of each block sees to."""
    rows = np.pad(relative, (0, -relative.size % (BLOCK - 1))).reshape(-1, BLOCK - 1)
    rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
    codes, scales = reference.encode_blocks(rows, signed)
    assert (scales == 1).all()
    return codes[:, :-1].ravel()[: relative.size]


def neighbours(numbers, distance=4):
    """Each float32 and those within some units in the last place; the numbers are not near 0."""
    steps = np.arange(-distance, distance + 1, dtype=np.int32)
    return (numbers.astype(np.float32).view(np.int32)[..., None] + steps).view(np.float32)


def boundaries(signed):
    """The middles of neighbouring values, and the ends of the decades and of their parts."""
    values = reference.code_values(signed).astype(np.float64)
    parts = [part_of(code, signed) for code in range(256) if code not in (ZERO[signed], ONE)]
    ends = [
        sign * 10.0 ** (e - 6) * (0.1 + 0.9 * (j + right) / count)
        for sign, e, count, j in parts
        for right in (0, 1)
    ]
    return np.concatenate([(values[1:] + values[:-1]) / 2, ends])


@KINDS
def test_values_are_the_formula(signed):
    values = reference.code_values(signed)
    expected = [value_of(code, signed) for code in range(256)]
    assert values.dtype == np.float32
    assert values.view(np.int32).tolist() == [int(v.view(np.int32)) for v, _ in expected]
    assert (np.diff(values) > 0).all()
    assert values[ZERO[signed]] == 0
    assert values[ONE] == 1
    assert values[0] == (np.float32(-0.99296875) if signed else 0)  # there is no -1
    for value, exact in expected:  # five roundings, of numbers that are no smaller than the result
        assert abs(Fraction(float(value)) - exact) <= abs(exact) * Fraction(5, 2**24)


@KINDS
def test_every_code_at_every_power_of_two_stays(signed):
    """The code of 1 is the only one that the largest element of a block can keep."""
    every = np.tile(np.arange(256, dtype=np.uint8), (POWERS.size, 1))
    decoded = reference.decode_blocks(every, POWERS[:, 0], signed)
    codes, scales = reference.encode_blocks(decoded, signed)
    assert np.array_equal(codes, every)
    assert np.array_equal(scales, POWERS[:, 0])


@KINDS
def test_the_nearest_value_as_in_bitsandbytes_but_for_rounding(signed):
    """Every 67th float32 below 1, and those around every boundary.

    bitsandbytes takes the nearest of the sorted values, by their middles; that may be zero for a
    number that is not, which here is nothing without a sign. The arithmetic here has
    a relative error of less than 5 * 2^-24 where it multiplies, and rounds a place between 1 and 2
    to 2^-23: so in units of a decade's length, which is 0.9 of its upper end, it is off by less
    than (10/9 * 5 + 1) * 2^-24, and it misses the nearest by twice that or less. Of the millions
    a handful is that near to a middle; of the numbers within 4 units in the last place of one a
    third is.
    """
    values = reference.code_values(signed).astype(np.float64)
    middles = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    every = np.arange(0x33000000, 0x3F800001, 67, dtype=np.int32).view(np.float32)
    for numbers, differing in ((every, 1e-5), (neighbours(boundaries(signed)).ravel(), 0.35)):
        relative = np.concatenate([numbers, -numbers]) if signed else numbers
        relative = relative[np.abs(relative) <= 1]
        codes, theirs = encode(relative, signed), np.searchsorted(middles, relative)
        theirs = theirs if signed else np.where(relative > 0, np.maximum(theirs, 1), theirs)
        wide = relative.astype(np.float64)
        lost = np.abs(np.abs(wide - values[codes]) - np.abs(wide - values[theirs]))
        upper_end = 10.0 ** np.clip(np.ceil(np.log10(np.abs(wide))), -6, 0)
        assert (lost <= 2 * 0.9 * (50 / 9 + 1) * 2.0**-24 * upper_end).all()
        assert 0 < (codes != theirs).mean() < differing


@KINDS
@pytest.mark.parametrize("size", [1, 255, 256, 257])
@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-40, 2.0**-149, np.finfo(np.float32).max])
def test_blocks_and_scales(size, scale, signed):
    """Elements of the first code above zero, but for the largest: the scale of one block only."""
    scale, least = np.float32(scale), ZERO[signed] + 3
    x = np.full(size, reference.code_values(signed)[least] * scale)
    x[-1] = scale
    codes, scales = reference.encode_blocks(x, signed)
    expected = [x[i : i + BLOCK].max() for i in range(0, size, BLOCK)]
    assert np.array_equal(scales, np.array(expected, np.float32))
    assert scales[-1] == scale
    assert codes[-1] == ONE
    decoded = reference.decode_blocks(codes, scales, signed)
    assert decoded[-1] == scale
    if scale > 1e-38 and size <= BLOCK:
        assert (codes[:-1] == least).all()


@KINDS
def test_zeros_stay_zeros(signed):
    for x in (np.zeros(300, np.float32), -np.zeros(300, np.float32)):
        x[7] = 1e-3
        codes, scales = reference.encode_blocks(x, signed)
        assert scales.tolist() == [np.float32(1e-3), 0]
        decoded = reference.decode_blocks(codes, scales, signed)
        assert np.array_equal(np.flatnonzero(decoded), [7])
        assert not np.signbit(decoded).any()


def test_a_number_without_a_sign_is_zero_only_where_it_is_zero():
    """Of the smallest that there are, too; with a sign most of these are nearest to zero."""
    x = np.array([1, 1e-6, 1e-7, 1e-30, 2.0**-149, 0, -1e-3], np.float32)
    for scale in np.array([1, 1e-30, 1e37], np.float32):
        numbers = np.maximum(x * scale, np.where(x > 0, np.float32(2.0**-149), x * scale))
        codes, _ = reference.encode_blocks(numbers, False)
        first = 1 if scale == 1 else codes[2]
        assert codes.tolist() == [ONE, codes[1], first, first, first, 0, 0]
        assert codes[1] >= first == 1
    codes, _ = reference.encode_blocks(x, True)
    assert codes[2:6].tolist() == [127] * 4


def test_a_negative_largest_element_loses_what_minus_one_would_have_kept():
    x = np.array([-2.0, 1.0, 0.0], np.float32)
    codes, scales = reference.encode_blocks(x, True)
    assert (codes[0], scales.tolist()) == (0, [2.0])
    assert reference.decode_blocks(codes, scales, True)[0] == 2 * reference.code_values(True)[0]


@KINDS
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_leaves_its_neighbours_alone(special, signed):
    x = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    at = np.array([0, 300, 699])
    x[at] = 0
    codes, scales = reference.encode_blocks(x, signed)
    x[at] = special
    spoilt, spoilt_scales = reference.encode_blocks(x, signed)
    assert np.array_equal(scales, spoilt_scales)
    assert np.array_equal(np.delete(codes, at), np.delete(spoilt, at))
    last = {np.inf: ONE, -np.inf: 0}.get(special, ZERO[signed])
    assert (spoilt[at] == last).all()


# On the engine. A number is stored as it is where one of these makes it the whole of a state.


def store(numbers, signed):
    """Codes and scales of float32 numbers, from the engine."""
    numbers = torch.from_numpy(numbers.ravel())
    if signed:
        param = torch.nn.Parameter(torch.zeros_like(numbers))
        param.grad = numbers
        optimizer = fusedopt.Momentum([param], lr=1, momentum=0, maximize=True, state_bits=8)
    else:
        # The square in double of a root in double is nearer to a float32 than to any other.
        param = torch.nn.Parameter(torch.zeros_like(numbers, dtype=torch.float64))
        param.grad = numbers.double().sqrt()
        optimizer = fusedopt.RMSprop([param], alpha=0, state_bits=8)
    optimizer.step()
    name = "velocity" if signed else "square_avg"
    state = optimizer.state[param]
    return state[name].numpy(), state[name + "_scale"].numpy()


def assert_stored_as_in_the_reference(rows, signed):
    numbers = rows.ravel()
    codes, scales = store(numbers if signed else np.abs(numbers), signed)
    expected, expected_scales = reference.encode_blocks(
        numbers if signed else np.abs(numbers), signed
    )
    assert np.array_equal(scales.view(np.int32), expected_scales.view(np.int32))
    assert np.array_equal(codes, expected)


@KINDS
def test_engine_around_every_boundary(signed, each_isa):
    """At many scales, of which each block has an element."""
    generator = np.random.default_rng(1)
    scales = np.exp2(generator.uniform(-100, 125, 24)).astype(np.float32)
    scales[:3] = 1, 2.0**-90, 2.0**120
    for scale in scales:
        numbers = boundaries(signed) * np.float64(scale)
        near = neighbours(numbers).ravel()
        near = near[np.abs(near) <= scale]
        rows = np.pad(near, (0, -near.size % 255)).reshape(-1, 255)
        whole = np.concatenate([rows, np.full((len(rows), 1), scale)], axis=1)
        assert (block_scales(whole) == scale).all()
        assert_stored_as_in_the_reference(whole, signed)


@KINDS
@pytest.mark.parametrize("size", [4096, 4097, 4351, 4353])
def test_engine_at_every_magnitude(size, signed, each_isa):
    """Relative to a block's scale, and any float32 whatever."""
    generator = np.random.default_rng(size)
    signs = generator.choice(np.array([-1, 1], np.float32), size)
    block = np.arange(size) // BLOCK
    exponents = generator.uniform(-140, 127, block[-1] + 1)[block]
    with np.errstate(under="ignore"):
        numbers = np.exp2(exponents - generator.uniform(0, 26, size)).astype(np.float32)
    assert_stored_as_in_the_reference(signs * numbers, signed)
    any_bits = generator.integers(0, 2**32, size, np.uint32).view(np.float32)
    any_bits[::97], any_bits[50::97], any_bits[70::97] = np.inf, -np.inf, np.nan
    assert_stored_as_in_the_reference(any_bits, signed)


def test_engine_keeps_and_decodes_every_code_at_every_power_of_two(each_isa):
    """With a rate of 0 and all of the momentum a velocity stays, and is added to the parameter."""
    size = 256 * POWERS.size
    codes = torch.arange(256, dtype=torch.uint8).repeat(POWERS.size)
    param = torch.nn.Parameter(torch.zeros(size))
    param.grad = torch.zeros(size)
    optimizer = fusedopt.Momentum([param], lr=0, momentum=1, state_bits=8)
    scales = torch.from_numpy(POWERS[:, 0].copy())
    optimizer.state[param] = {"velocity": codes.clone(), "velocity_scale": scales.clone()}
    optimizer.step()
    states = optimizer.state[param]
    assert torch.equal(states["velocity"], codes)
    assert torch.equal(states["velocity_scale"], scales)
    expected = reference.decode_blocks(codes.numpy(), POWERS[:, 0], True)
    assert np.array_equal(param.detach().numpy().view(np.int32), expected.view(np.int32))


def test_engine_keeps_and_decodes_every_code_without_a_sign(each_isa):
    """In double the parameter tells the roots of all of these numbers apart."""
    size = 256 * POWERS.size
    codes = torch.arange(256, dtype=torch.uint8).repeat(POWERS.size)
    param = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
    param.grad = torch.ones(size, dtype=torch.float64)
    optimizer = fusedopt.RMSprop([param], lr=1, alpha=1, eps=0, state_bits=8)
    scales = torch.from_numpy(POWERS[:, 0].copy())
    optimizer.state[param] = {
        "step": torch.zeros(()), "square_avg": codes.clone(), "square_avg_scale": scales.clone(),
    }  # fmt: skip
    optimizer.step()
    states = optimizer.state[param]
    assert torch.equal(states["square_avg"], codes)
    assert torch.equal(states["square_avg_scale"], scales)
    expected = reference.decode_blocks(codes.numpy(), POWERS[:, 0], False).astype(np.float64)
    with np.errstate(divide="ignore"):
        quotients = -1 / np.sqrt(expected)
    assert np.array_equal(param.detach().numpy(), quotients)
