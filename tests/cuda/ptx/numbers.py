"""The types of PTX as NumPy's, and the arithmetic that NumPy does not have as it is."""

from __future__ import annotations

import numpy as np

TYPES = {
    "pred": np.dtype(np.bool_),
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
}
UNSIGNED = {size: np.dtype(f"u{size}") for size in (1, 2, 4, 8)}

CANONICAL_NAN = np.uint32(0x7FFFFFFF)
NARROW_NAN = np.uint16(0x7FFF)


def unsigned(dtype: np.dtype) -> np.dtype:
    return UNSIGNED[dtype.itemsize]


def immediate(text: str, dtype: np.dtype) -> np.generic:
    """A constant as it stands in the PTX; integers wrap at the width of the type."""
    if dtype.kind == "b":
        return np.bool_(int(text, 0) != 0)
    bits = int(text[2:], 16) if text[:2] in ("0f", "0d") else int(text.rstrip("U"), 0)
    bits &= (1 << 8 * dtype.itemsize) - 1
    return np.array(bits, unsigned(dtype)).view(dtype)[()]


def canonical(numbers: np.ndarray) -> np.ndarray:
    """Arithmetic in f32 has only one NaN as its result, whatever the NaN that went in."""
    is_nan = np.isnan(numbers)
    if not is_nan.any():
        return numbers
    return np.where(is_nan, CANONICAL_NAN, numbers.view(np.uint32)).view(np.float32)


def to_bf16(numbers: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even; a NaN becomes the canonical one."""
    bits = numbers.view(np.uint32)
    odd = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)
    return np.where(np.isnan(numbers), NARROW_NAN, rounded.astype(np.uint16))


def to_f16(numbers: np.ndarray) -> np.ndarray:
    """Bits of the nearest float16, ties to even; a NaN becomes the canonical one."""
    return np.where(np.isnan(numbers), NARROW_NAN, numbers.astype(np.float16).view(np.uint16))


def to_s64(numbers: np.ndarray) -> np.ndarray:
    """Towards zero; what is outside becomes the nearest s64, and NaN of f64 the smallest."""
    is_inside = np.abs(numbers) < 2.0**63
    inside = np.where(is_inside, numbers, 0.0).astype(np.int64)
    limit = np.where(numbers > 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min)
    return np.where(is_inside, inside, limit)


def to_s32(numbers: np.ndarray) -> np.ndarray:
    """Towards zero; what is outside becomes the nearest s32, and NaN of f32 zero."""
    limits = np.iinfo(np.int32)
    wide = np.where(np.isnan(numbers), np.float32(0), numbers).astype(np.float64)
    return np.clip(wide, limits.min, limits.max).astype(np.int32)


def number_of(a: np.ndarray, b: np.ndarray, of_numbers: np.ndarray) -> np.ndarray:
    """Of two numbers what is given; of a number and a NaN, which may be a signalling one, it."""
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, of_numbers))


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number if the other is NaN; of two zeros the positive one."""
    zero = (a.view(np.uint32) & b.view(np.uint32)).view(np.float32)
    return number_of(a, b, np.where((a == 0) & (b == 0), zero, np.maximum(a, b)))


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The number if the other is NaN; of two zeros the negative one."""
    zero = (a.view(np.uint32) | b.view(np.uint32)).view(np.float32)
    return number_of(a, b, np.where((a == 0) & (b == 0), zero, np.minimum(a, b)))


def permute(low: np.ndarray, high: np.ndarray, selectors: np.ndarray) -> np.ndarray:
    """prmt: each byte by a selector of four bits; its highest takes the byte's sign alone."""
    whole = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    result = np.zeros(np.broadcast_shapes(np.shape(whole), np.shape(selectors)), np.uint32)
    for place in range(4):
        selector = selectors >> np.uint32(4 * place)
        position = (selector & np.uint32(7)).astype(np.uint64) * np.uint64(8)
        byte = (whole >> position).astype(np.uint32) & np.uint32(0xFF)
        sign = (byte >> np.uint32(7)) * np.uint32(0xFF)
        chosen = np.where(selector & np.uint32(8) != 0, sign, byte)
        result |= chosen << np.uint32(8 * place)
    return result


def shift_left(bits: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Counts are clamped at the width, where NumPy's shift has no bits left."""
    return bits << clamp(count, bits.dtype)


def shift_right(bits: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Fills with the sign where the type has one."""
    return bits >> clamp(count, bits.dtype)


def clamp(count: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.minimum(count, np.uint32(8 * dtype.itemsize)).astype(dtype)


def low_bits(length: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A mask of the lowest bits. Of a length or a position only 8 bits count."""
    ones = dtype.type(np.iinfo(dtype).max)
    return ~shift_left(np.broadcast_to(ones, np.shape(length)), length & np.uint32(0xFF))


def extract(bits: np.ndarray, position: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe of an unsigned type: bits above the width are zeros."""
    return shift_right(bits, position & np.uint32(0xFF)) & low_bits(length, bits.dtype)


def insert(
    field: np.ndarray, bits: np.ndarray, position: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """bfi: bits with the low bits of a field at a position."""
    position = position & np.uint32(0xFF)
    mask = shift_left(low_bits(length, bits.dtype), position)
    return (bits & ~mask) | (shift_left(field, position) & mask)


def divide(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """Truncates, as PTX does; NumPy's integers round down. The divisor is not zero."""
    if dividend.dtype.kind == "u":
        return dividend // divisor
    return (dividend - np.fmod(dividend, divisor)) // divisor


def remainder(dividend: np.ndarray, divisor: np.ndarray) -> np.ndarray:
    """It has the sign of the dividend."""
    return np.fmod(dividend, divisor)


def unordered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isnan(a) | np.isnan(b)
