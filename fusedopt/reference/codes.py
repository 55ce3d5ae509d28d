"""Numbers in 8 bits: blocks of elements that share a scale, each as one of 256 values.

Dettmers, Lewis, Shleifer, Zettlemoyer: 8-bit Optimizers via Block-wise Quantization, ICLR 2022:
the dynamic code, which spends its bits on seven decades and fewer of them on the smaller ones.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fusedopt.reference.shared import Array

BLOCK = 256

_DECADES = 7


def _magnitudes(first_exponent: int) -> NDArray[np.float32]:
    """The magnitudes between 0 and 1 that have a code, ascending.

    A decade ``0.1 * p`` to ``p`` is cut into 2^e equal parts, and the middle of each has a code.
    """
    values = []
    for decade in range(_DECADES):
        parts = 2 ** (decade + first_exponent)
        power = np.float32(10.0 ** (decade + 1 - _DECADES))
        middle = (np.arange(parts, dtype=np.float32) + np.float32(0.5)) / np.float32(parts)
        values.append(power * (np.float32(0.1) + np.float32(0.9) * middle))
    return np.concatenate(values)


@functools.cache
def code_values(signed: bool) -> NDArray[np.float32]:
    """The value of each of the 256 codes, for a scale of 1, ascending.

    Signed: 127 is zero, 128 + k is the k-th magnitude, 126 - k minus that, and 255 is 1; there is
    no -1. Unsigned: 0 is zero, 1 + k the k-th magnitude, which there are twice as many of, and 255
    is 1.
    """
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    magnitudes = _magnitudes(0 if signed else 1)
    below = -magnitudes[::-1] if signed else magnitudes[:0]
    return np.concatenate([below, zero, magnitudes, one])


@functools.cache
def _decades(signed: bool) -> tuple[NDArray[np.float32], np.float32, np.float32]:
    """Where the values of the next decade begin to be nearer, for each decade but the last.

    And up to where zero is nearer than the first value, and where 1 begins to be nearer than the
    last.
    """
    magnitudes = _magnitudes(0 if signed else 1)
    sizes = [2 ** (decade + (not signed)) for decade in range(_DECADES)]
    last = np.cumsum(sizes) - 1
    first = last - np.asarray(sizes) + 1
    ends = _middle(magnitudes[last[:-1]], magnitudes[first[1:]])
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    return ends, _middle(zero, magnitudes[:1])[0], _middle(magnitudes[-1:], one)[0]


def _middle(low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    return ((low.astype(np.float64) + high.astype(np.float64)) / 2).astype(np.float32)


def _nearest_magnitude(relative: NDArray[np.float32], signed: bool) -> NDArray[np.int32]:
    """0 for zero, 1 + k for the k-th magnitude, behind these for 1."""
    ends, nearly_zero, nearly_one = _decades(signed)
    decade = np.searchsorted(ends, relative, side="left")
    parts = np.int32(1 if signed else 2) << decade.astype(np.int32)
    # Between 1 and 2 as the number is between the ends of its decade.
    place = relative * _inverse_powers()[decade] + np.float32(8) / np.float32(9)
    place = np.clip(place, np.float32(1), np.float32(2 - 2.0**-23))
    found = np.floor(place * parts.astype(np.float32)).astype(np.int32) - (0 if signed else 1)
    found = np.where(relative > nearly_one, 128 if signed else 255, found)
    return np.where(relative > nearly_zero, found, 0).astype(np.int32)


def _inverse_powers() -> NDArray[np.float32]:
    powers = np.array([10.0 ** (decade + 1 - _DECADES) for decade in range(_DECADES)], np.float32)
    return np.float32(1) / (np.float32(0.9) * powers)


def _to_float32(x: Array) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def block_scales(x: Array) -> NDArray[np.float32]:
    """The scale of each block of 256 elements in memory order: its largest finite magnitude."""
    flat = np.abs(_to_float32(x).ravel())
    flat = np.where(np.isfinite(flat), flat, np.float32(0))
    blocks = np.zeros((-(-flat.size // BLOCK), BLOCK), np.float32)
    blocks.ravel()[: flat.size] = flat
    return np.asarray(blocks.max(axis=1, initial=0.0))


def encode_blocks(x: Array, signed: bool) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes and scales of an array.

    A magnitude relative to the scale gets the code of the nearest value: of that in whose part of
    its decade it lies, and outside of these parts of the nearer one. Float32 arithmetic decides
    which that is, so where a number is halfway between two values but for the rounding of these
    lines, it may be either. A zero stays zero. An infinity gets the code of the largest value with
    its sign and a NaN that of zero, and neither changes what is stored of its neighbours.

    Where the code has no sign a negative number is zero, and a number above zero never is: at
    least it gets the first magnitude. States without a sign are what steps are divided by, by
    their roots, and a gradient that is rare would divide by nothing but ``eps``.

    Returns:
        Codes of the array's shape, and one scale for each block.
    """
    scales = block_scales(x)
    scale = np.repeat(scales, BLOCK)[: x.size].reshape(x.shape)
    number = np.nan_to_num(_to_float32(x), nan=0.0, posinf=np.inf, neginf=-np.inf)
    with np.errstate(all="ignore"):
        # A power of two keeps the reciprocal of every scale within range. It is exact, but that
        # beside a scale above 2^126 numbers up to 2^-148 become zero.
        shift = np.where(scale < 2.0**-126, np.float32(2.0**64), np.float32(1))
        shift = np.where(scale > 2.0**126, np.float32(0.25), shift)
        number = number * shift
        relative = np.abs(number) * (np.float32(1) / (scale * shift))
        relative = np.where(scale > 0, relative, np.float32(0))
        magnitude = _nearest_magnitude(relative, signed)
    if not signed:
        magnitude = np.maximum(magnitude, 1)
        return np.where((number > 0) & (scale > 0), magnitude, 0).astype(np.uint8), scales
    # There is no -1.
    codes = np.where(number > 0, 127 + magnitude, 127 - np.minimum(magnitude, 127))
    return codes.astype(np.uint8), scales


def decode_blocks(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], signed: bool
) -> NDArray[np.float32]:
    """The numbers that codes stand for, each the code's value times the scale of its block."""
    scale = np.repeat(scales, BLOCK)[: codes.size].reshape(codes.shape)
    return np.asarray(code_values(signed)[codes] * scale)
