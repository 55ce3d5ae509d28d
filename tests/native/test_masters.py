"""Every float32 as a bfloat16 and a remainder, in the engine's codec and in the reference."""

from __future__ import annotations

import numpy as np

from fusedopt import reference
from helpers import run_native


def edges():
    """Every upper half with these lower halves."""
    lower = np.array([0, 1, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xABCD, 0xFFFF], np.uint32)
    return (np.arange(2**16, dtype=np.uint32)[:, None] << np.uint32(16) | lower).ravel()


def some():
    """Bits of floats: the edges, and every 4,099th pattern."""
    return np.concatenate([edges(), np.arange(0, 2**32, 4099, np.uint32)])


def test_every_float_is_its_parts(tmp_path):
    """And their bfloat16 is the nearest; the checksum is that of the reference's parts."""
    upper, remainder = reference.split_master(edges().view(np.float32))
    parts = upper.astype(np.uint64) << np.uint64(16) | remainder.view(np.uint16)
    checksum = (parts * np.arange(1, parts.size + 1, dtype=np.uint64)).sum(dtype=np.uint64)
    assert run_native("every_master.cpp", tmp_path, "-O2", headers_only=True) == [
        "changed 0",
        "not nearest 0",
        f"checksum {checksum}",
    ]


def test_the_reference_puts_together_what_it_takes_apart():
    bits = some()
    joined = reference.join_master(*reference.split_master(bits.view(np.float32)))
    is_nan = np.isnan(bits.view(np.float32))
    expected = np.where(is_nan, np.uint32(0x7FC00000), bits)
    assert np.array_equal(joined.view(np.uint32), expected)


def test_the_reference_rounds_ties_away_from_zero():
    bits = some()
    finite = bits[(bits & 0x7FFFFFFF) < 0x7F800000]
    upper, _ = reference.split_master(finite.view(np.float32))
    # As doubles, where infinity is the number that would be next.
    inner = finite >> np.uint32(16)
    low, high = (value_of(half) for half in (inner, inner + np.uint32(1)))
    number = value_of(finite, of_upper_half=False)
    is_outer = np.abs(high - number) <= np.abs(number - low)
    assert np.array_equal(upper, (inner + is_outer).astype(np.uint16))


def value_of(bits, of_upper_half=True):
    """A float as a double; infinity as 2^128."""
    with np.errstate(all="ignore"):
        number = (bits << np.uint32(16 if of_upper_half else 0)).view(np.float32)
        return np.nan_to_num(number.astype(np.float64), posinf=2.0**128, neginf=-(2.0**128))
