"""How numbers are stored, and rules for what is stored in other formats than it is computed in."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from fusedopt.reference.shared import Array, Rule, State


def _nan_of_16_bits(dtype: np.dtype[Any], bits: int) -> Array:
    """The NaN whose upper half, or whose float16, is 0x7fff, as an array of no dimensions."""
    return np.array(np.uint32(bits).view(np.float32)).astype(dtype)


def round_bfloat16(x: Array) -> Array:
    """The bfloat16 nearest to each number, ties to even, as an array of ``x``'s dtype.

    Every NaN becomes that of the bits 0x7fff.
    """
    if x.dtype == np.float32:
        bits = x.view(np.uint32)
        last_bit = bits >> np.uint32(16) & np.uint32(1)
        upper = (bits + np.uint32(0x7FFF) + last_bit) & np.uint32(0xFFFF0000)
        rounded = upper.view(np.float32)
    else:
        rounded = _round_to_bfloat16_from_wider(x)
    return np.where(np.isnan(x), _nan_of_16_bits(x.dtype, 0x7FFF << 16), rounded)


def _round_to_bfloat16_from_wider(x: Array) -> Array:
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(x)
        last_bit = np.maximum(exponent - 8, -133)  # 2^-133 is the smallest subnormal
        rounded = np.ldexp(np.rint(np.ldexp(x, -last_bit)), last_bit)
        is_finite = np.abs(rounded) <= float(np.finfo(np.float32).max)
        return np.where(is_finite, rounded, np.copysign(x.dtype.type(np.inf), x))


def round_float16(x: Array) -> Array:
    """The float16 nearest to each number, ties to even, as an array of ``x``'s dtype.

    Every NaN becomes that of the bits 0x7fff.
    """
    with np.errstate(all="ignore"):
        rounded = x.astype(np.float16).astype(x.dtype)
    return np.where(np.isnan(x), _nan_of_16_bits(x.dtype, 0x7FFFE000), rounded)


def round_float32(x: Array) -> Array:
    """The float32 nearest to each number, ties to even, as an array of ``x``'s dtype."""
    with np.errstate(all="ignore"):
        return x.astype(np.float32).astype(x.dtype)


def round_bfloat16_stochastically(x: Array, bits: NDArray[np.uint16]) -> Array:
    """One of the two bfloat16 around each number, the nearer the likelier; as ``x``'s dtype.

    The mean over all bits is the number, in float32. Infinities stay, and so does every bfloat16;
    every NaN becomes that of the bits 0x7fff.

    Args:
        x: numbers, which are first rounded to float32.
        bits: 16 random bits for each, from :func:`fusedopt.reference.random_bits`.
    """
    with np.errstate(all="ignore"):
        number = x.astype(np.float32)
    upper = number.view(np.uint32) + bits & np.uint32(0xFFFF0000)
    rounded = np.where(np.isfinite(number), upper.view(np.float32), number).astype(x.dtype)
    return np.where(np.isnan(x), _nan_of_16_bits(x.dtype, 0x7FFF << 16), rounded)


def split_master(x: Array) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """A float32 as a bfloat16 and 16 bits more: the bits of the bfloat16, and the remainder.

    The bfloat16 is the nearest one, of two equally near ones that of the larger magnitude: so the
    sign of the remainder says whether it was rounded up, which nearest, ties to even, would leave
    open. Every NaN is 0x7fc00000.

    As Transformer Engine keeps its masters, with ``store_param_remainders``.
    """
    with np.errstate(all="ignore"):
        number = x.astype(np.float32)
    bits = np.where(np.isnan(number), np.uint32(0x7FC00000), number.view(np.uint32))
    remainder = bits.astype(np.uint16).view(np.int16)
    upper = (bits >> np.uint32(16)) + (remainder < 0)
    return upper.astype(np.uint16), remainder


def join_master(upper: NDArray[np.uint16], remainder: NDArray[np.int16]) -> NDArray[np.float32]:
    """The float32 that :func:`split_master` took apart."""
    bits = upper - (remainder < 0).astype(np.uint16)
    joined = bits.astype(np.uint32) << np.uint32(16) | remainder.view(np.uint16)
    return joined.view(np.float32)


def in_16_bits(rule: Rule, round_to_storage: Callable[[Array], Array]) -> Rule:
    """``rule`` for parameters and states that are stored in 16 bits.

    All arrays are float32 and hold values of the 16-bit type. The step is done in float32; the
    parameter and every state are rounded when they are stored, once.

    Args:
        rule: a rule of this package, for arrays of float32.
        round_to_storage: ``round_bfloat16`` or ``round_float16``.
    """
    return in_formats(rule, round_to_storage, round_to_storage)


def in_formats(
    rule: Rule, round_param: Callable[[Array], Array], round_state: Callable[[Array], Array]
) -> Rule:
    """``rule`` for parameters and states that are each stored in a format of their own.

    All arrays are of the type that the step is done in: float64 if parameter, gradient or a state
    is float64, and else float32. They hold values of their formats, and the new parameter and
    states are rounded when they are stored, once.

    Args:
        rule: a rule of this package.
        round_param: ``round_bfloat16``, ``round_float16``, ``round_float32``, or any function of an
            array that returns what is stored of it.
        round_state: the same for the states.
    """

    @functools.wraps(rule)
    def rounded_rule(
        param: Array, grad: Array, state: State, **options: Any
    ) -> tuple[Array, State]:
        if "initial_accumulator_value" in options:
            # A state that has been stored before the first step.
            value = np.full(1, options["initial_accumulator_value"], param.dtype)
            options["initial_accumulator_value"] = float(round_state(value)[0])
        param, state = rule(param, grad, state, **options)
        stored = {
            # Arithmetic on arrays of no dimensions gives NumPy's scalars; a step count is an int.
            name: value if isinstance(value, int) else round_state(np.asarray(value))
            for name, value in state.items()
        }
        return round_param(np.asarray(param)), stored

    return rounded_rule
