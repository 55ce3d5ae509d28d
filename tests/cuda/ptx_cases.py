"""Values of PTX's instructions, written by hand.

A case's shape has a letter for the result and for each operand: p a predicate, h, r and l registers
of 16, 32 and 64 bits. Its rows are bits: negative integers in two's complement, f(1.5) those of an
f32, d(1.5) those of an f64.
"""

from __future__ import annotations

import re
import struct
from itertools import product

import numpy as np

from ptx import OPCODES

SIZES = (16, 32, 64)
LETTER = {16: "h", 32: "r", 64: "l"}


def f(number: float) -> int:
    return struct.unpack("<I", struct.pack("<f", number))[0]


def d(number: float) -> int:
    return struct.unpack("<Q", struct.pack("<d", number))[0]


# The NaN that f32 arithmetic makes, and two others.
NAN, QUIET_NAN, SIGNALLING_NAN = 0x7FFFFFFF, 0xFFC12345, 0x7F800001
INF, MAX, TINY = f(float("inf")), 0x7F7FFFFF, 0x00000001
D_NAN, D_INF, D_TINY = 0x7FF8000000000000, d(float("inf")), 0x1
NEGATIVE, D_NEGATIVE = 1 << 31, 1 << 63


def integer_cases() -> dict:
    """The same rows for every width: top is the sign bit, ones are all bits."""
    cases = {}
    for bits in SIZES:
        x, top, ones = LETTER[bits], 1 << bits - 1, (1 << bits) - 1
        for kind in (f"s{bits}", f"u{bits}"):
            cases[f"add.{kind}"] = (
                x * 3,
                [(5, 2, 3), (0, ones, 1), (top, top - 1, 1), (0, top, top)],
            )
            cases[f"sub.{kind}"] = x * 3, [(5, 8, 3), (ones, 0, 1), (top - 1, top, 1), (1, 0, ones)]
            products = [
                (42, 6, 7),
                (1, ones, ones),
                (0, top, 2),
                (top, top, 3),
                (ones - 1, ones, 2),
            ]
            cases[f"mul.lo.{kind}"] = x * 3, products
            cases[f"mad.lo.{kind}"] = (
                x * 4,
                [(43, 6, 7, 1), (0, ones, ones, ones), (ones, top, 2, ones)],
            )
        u, s = f"u{bits}", f"s{bits}"
        cases[f"min.{u}"] = x * 3, [(1, 1, 2), (1, ones, 1), (top - 1, top, top - 1)]
        cases[f"max.{u}"] = x * 3, [(2, 1, 2), (ones, ones, 1), (top, top, top - 1)]
        cases[f"min.{s}"] = x * 3, [(1, 1, 2), (ones, ones, 1), (top, top, top - 1)]
        cases[f"max.{s}"] = x * 3, [(2, 1, 2), (1, ones, 1), (top - 1, top, top - 1)]
        cases[f"div.{u}"] = x * 3, [(3, 7, 2), (ones // 3, ones, 3), (0, 1, ones), (1, top, top)]
        cases[f"rem.{u}"] = x * 3, [(1, 7, 2), (0, ones, 3), (1, 1, ones), (top, top, ones)]
        cases[f"div.{s}"] = (
            x * 3,
            [(3, 7, 2), (-3, -7, 2), (-3, 7, -2), (3, -7, -2), (0, -1, 2), (top, top, 1)],
        )
        cases[f"rem.{s}"] = x * 3, [(1, 7, 2), (-1, -7, 2), (1, 7, -2), (-1, -7, -2), (0, top, 2)]
        cases[f"neg.{s}"] = x * 2, [(-5, 5), (5, -5), (0, 0), (top, top)]
        cases[f"shl.b{bits}"] = x + x + "r", [
            (8, 1, 3), (top, 1, bits - 1), (ones - 1, ones, 1), (5, 5, 0),
            (0, ones, bits), (0, ones, bits + 1), (0, ones, 1 << 16), (0, ones, 0xFFFFFFFF),
        ]  # fmt: skip
        cases[f"shr.{u}"] = x + x + "r", [
            (1, 8, 3), (1, top, bits - 1), (top - 1, ones - 1, 1), (5, 5, 0),
            (0, ones, bits), (0, top, 1 << 16), (0, ones, 0xFFFFFFFF),
        ]  # fmt: skip
        cases[f"shr.{s}"] = x + x + "r", [
            (1, 8, 3), (ones, top, bits - 1), (ones, ones - 1, 1), (5, 5, 0),
            (ones, ones, bits), (ones, top, 1 << 16), (0, top - 1, bits), (ones, top, 0xFFFFFFFF),
        ]  # fmt: skip
        for operation, rows in (
            ("and", [(0b1000, 0b1100, 0b1010), (top, ones, top)]),
            ("or", [(0b1110, 0b1100, 0b1010), (ones, top, top - 1)]),
            ("xor", [(0b0110, 0b1100, 0b1010), (0, ones, ones)]),
        ):
            cases[f"{operation}.b{bits}"] = x * 3, rows
        cases[f"not.b{bits}"] = x * 2, [(ones, 0), (0, ones), (top - 1, top), (-6, 5)]
        for kind in ("b", "u", "s") + (("f",) if bits > 16 else ()):
            cases[f"selp.{kind}{bits}"] = (
                x * 3 + "p",
                [(7, 7, 8, 1), (8, 7, 8, 0), (ones, ones, top, 1)],
            )
            cases[f"mov.{kind}{bits}"] = x * 2, [(7, 7), (ones, ones), (top, top)]
    cases["mul.wide.u16"] = "rhh", [(42, 6, 7), (0xFFFE0001, 0xFFFF, 0xFFFF)]
    cases["mul.wide.u32"] = "lrr", [(42, 6, 7), (0xFFFFFFFE00000001, 0xFFFFFFFF, 0xFFFFFFFF)]
    cases["prmt.b32"] = "rrrr", [
        (0x44332211, 0x44332211, 0x88776655, 0x3210), (0x88776655, 0x44332211, 0x88776655, 0x7654),
        (0x11223344, 0x44332211, 0x88776655, 0x0123), (0x22116655, 0x44332211, 0x88776655, 0x1054),
        (0xFF00FF00, 0x44332211, 0x88776655, 0xF8F8), (0x000000FF, 0x44332280, 0x88776655, 0xBBB8),
        (0x44332211, 0x44332211, 0, 0xFFFF3210),
    ]  # fmt: skip
    cases["bfe.u32"] = "rrrr", [
        (0xE, 0xDEADBEEF, 4, 4), (0xDEAD, 0xDEADBEEF, 16, 16), (0xDEADBEEF, 0xDEADBEEF, 0, 32),
        (0, 0xDEADBEEF, 5, 0), (0x1, 0xDEADBEEF, 31, 8), (0, 0xDEADBEEF, 32, 8),
        (0xDEADBEEF, 0xDEADBEEF, 0, 255), (0xE, 0xDEADBEEF, 0x104, 0x104), (0, 0xFFFFFFFF, 0, 256),
    ]  # fmt: skip
    cases["bfe.u64"] = "llrr", [
        (0xE, 0xDEADBEEF << 32, 36, 4), (0xDEADBEEF << 32, 0xDEADBEEF << 32, 0, 64),
        (1, 1 << 63, 63, 9), (0, 1 << 63, 64, 1), (0, 1 << 63, 5, 0),
    ]  # fmt: skip
    cases["bfi.b32"] = "rrrrr", [
        (0xFFFFFF5F, 0x5, 0xFFFFFFFF, 4, 4), (0x000000F0, 0xFFFFFFFF, 0, 4, 4), (7, 9, 7, 3, 0),
        (0x12345678, 0x12345678, 0, 0, 32), (0x80000000, 1, 0, 31, 8), (7, 9, 7, 32, 4),
        (0x12345678, 0x12345678, 0, 0, 255), (0xF0, 0xF, 0, 0x104, 0x104),
    ]  # fmt: skip
    cases["bfi.b64"] = "lllrr", [
        (0xAAFFFFFFFF, 0xAA, 0xFFFFFFFF, 32, 8), (1 << 63, 3, 0, 63, 2), (7, 9, 7, 64, 4),
        (0xFFFFFFFF00000000, 0xFFFFFFFF, 0, 32, 32), (7, 9, 7, 3, 0), (5, 5, 0, 0, 64),
    ]  # fmt: skip
    return cases


def predicate_cases() -> dict:
    table = list(product((0, 1), repeat=2))
    return {
        "and.pred": ("ppp", [(a & b, a, b) for a, b in table]),
        "or.pred": ("ppp", [(a | b, a, b) for a, b in table]),
        "xor.pred": ("ppp", [(a ^ b, a, b) for a, b in table]),
        "not.pred": ("pp", [(1, 0), (0, 1)]),
        "mov.pred": ("pp", [(1, 1), (0, 0)]),
    }


# Of three pairs: below, equal and above. What a comparison says of them, and of one with NaN.
ORDER = {"eq": "010", "ne": "101", "lt": "100", "le": "110", "gt": "001", "ge": "011"}
WITH_NAN = {"num": ("111", 0), "nan": ("000", 1)}


def comparison_cases() -> dict:
    cases = {}
    for bits in SIZES:
        x, top, ones = LETTER[bits], 1 << bits - 1, (1 << bits) - 1
        for name, says in ORDER.items():
            unsigned = [(1, 2), (ones, ones), (top, top - 1), (1, ones), (top, top), (ones, 0)]
            signed = [(-1, 0), (top, top), (1, -1), (top, top - 1), (0, 0), (2, 1)]
            for kind, pairs in (("u", unsigned), ("s", signed)):
                rows = [(int(says[n % 3]), *pair) for n, pair in enumerate(pairs)]
                cases[f"setp.{name}.{kind}{bits}"] = "p" + x * 2, rows
            if name in ("eq", "ne"):
                rows = [(int(says[1]), top, top), (int(says[0]), ones, 0)]
                cases[f"setp.{name}.b{bits}"] = "p" + x * 2, rows
    unordered = {f"{name}u": (says, 1) for name, says in ORDER.items()}
    answers = {**{name: (says, 0) for name, says in ORDER.items()}, **unordered, **WITH_NAN}
    for name, (says, of_nan) in answers.items():
        for kind, x, number, nan, tiny in (
            ("f32", "r", f, QUIET_NAN, TINY),
            ("f64", "l", d, D_NAN, D_TINY),
        ):
            pairs = [
                (1.0, 2.0),
                (-0.0, 0.0),
                (3.0, -4.0),
                (-np.inf, -1.0),
                (1.5, 1.5),
                (np.inf, 1.0),
            ]
            rows = [(int(says[n % 3]), number(a), number(b)) for n, (a, b) in enumerate(pairs)]
            rows += [(of_nan, nan, number(1)), (of_nan, number(1), nan), (of_nan, nan, nan)]
            rows += [(int(says[0]), 0, tiny), (int(says[2]), tiny, number(-0.0))]
            cases[f"setp.{name}.{kind}"] = "p" + x * 2, rows
    return cases


FLOAT_CASES = {
    "add.rn.f32": ("rrr", [
        (f(3), f(1), f(2)), (f(2.0**24), f(2.0**24), f(1)), (f(2.0**24 + 4), f(2.0**24 + 2), f(1)),
        (0, f(1), f(-1)), (NEGATIVE, NEGATIVE, NEGATIVE), (0, 0, NEGATIVE), (2, TINY, TINY),
        (INF, MAX, MAX), (MAX, MAX, f(1)), (NAN, INF, INF | NEGATIVE), (NAN, QUIET_NAN, f(1)),
        (NAN, f(1), SIGNALLING_NAN),
    ]),
    "sub.rn.f32": ("rrr", [
        (f(-1), f(1), f(2)), (0, f(1), f(1)), (NEGATIVE, NEGATIVE, 0), (TINY, 2, TINY),
        (NAN, INF, INF), (INF, INF, f(1)), (NAN, QUIET_NAN, QUIET_NAN),
        (f(2.0**24), f(2.0**24), f(-1)),
    ]),
    "mul.rn.f32": ("rrr", [
        (f(6), f(2), f(3)), (0x3F800002, 0x3F800001, 0x3F800001), (NEGATIVE, f(-1), 0),
        (0, TINY, f(0.5)), (2, 3, f(0.5)), (INF, MAX, f(2)), (NAN, INF, 0), (NAN, f(1), QUIET_NAN),
        (0x00400000, 0x00800000, f(0.5)),
    ]),
    "div.rn.f32": ("rrr", [
        (0x3EAAAAAB, f(1), f(3)), (f(2), f(6), f(3)), (INF, f(1), 0), (NAN, INF, INF),
        (INF | NEGATIVE, f(1), NEGATIVE), (NAN, 0, 0), (0, f(1), INF), (TINY, TINY, f(1)),
        (NAN, f(1), SIGNALLING_NAN),
    ]),
    "sqrt.rn.f32": ("rr", [
        (f(3), f(9)), (0x3FB504F3, f(2)), (0, 0), (NEGATIVE, NEGATIVE), (INF, INF), (NAN, f(-1)),
        (0x1A3504F3, TINY), (NAN, QUIET_NAN),
    ]),
    "rcp.rn.f32": ("rr", [
        (f(0.5), f(2)), (0x3EAAAAAB, f(3)), (INF, 0), (INF | NEGATIVE, NEGATIVE), (0, INF),
        (0x00400000, 0x7F000000), (INF, TINY), (NAN, QUIET_NAN),
    ]),
    "max.f32": ("rrr", [
        (f(2), f(1), f(2)), (f(1), f(1), f(-2)), (0, 0, NEGATIVE), (0, NEGATIVE, 0),
        (NEGATIVE, NEGATIVE, NEGATIVE), (f(1), QUIET_NAN, f(1)), (f(1), f(1), SIGNALLING_NAN),
        (NAN, QUIET_NAN, SIGNALLING_NAN), (INF, INF, MAX), (TINY, TINY, 0),
    ]),
    "min.f32": ("rrr", [
        (f(1), f(1), f(2)), (f(-2), f(1), f(-2)), (NEGATIVE, 0, NEGATIVE), (NEGATIVE, NEGATIVE, 0),
        (0, 0, 0), (f(1), QUIET_NAN, f(1)), (f(1), f(1), SIGNALLING_NAN),
        (NAN, QUIET_NAN, SIGNALLING_NAN), (MAX, INF, MAX), (0, TINY, 0),
    ]),
    "neg.f32": ("rr", [
        (f(-1), f(1)), (NEGATIVE, 0), (0, NEGATIVE), (INF | NEGATIVE, INF), (TINY, TINY | NEGATIVE),
    ]),
    "copysign.f32": ("rrr", [
        (f(-2), f(-1), f(2)), (f(2), 0, f(-2)), (NEGATIVE, INF | NEGATIVE, 0),
    ]),
    "abs.f32": ("rr", [(f(1), f(-1)), (0, NEGATIVE), (INF, INF | NEGATIVE), (f(2), f(2))]),
    "add.rn.f64": ("lll", [
        (d(3), d(1), d(2)), (d(2.0**53), d(2.0**53), d(1)), (D_NEGATIVE, D_NEGATIVE, D_NEGATIVE),
        (2, D_TINY, D_TINY), (0x3FD3333333333334, d(0.1), d(0.2)),
    ]),
    "sub.rn.f64": ("lll", [
        (d(-1), d(1), d(2)), (D_TINY, 2, D_TINY), (0, d(1), d(1)), (D_INF, D_INF, d(1)),
    ]),
    "mul.rn.f64": ("lll", [
        (d(6), d(2), d(3)), (0x3FF0000000000002, 0x3FF0000000000001, 0x3FF0000000000001),
        (0, D_TINY, d(0.5)), (2, 3, d(0.5)), (D_INF, d(1e300), d(1e300)),
    ]),
    "div.rn.f64": ("lll", [
        (0x3FD5555555555555, d(1), d(3)), (D_INF, d(1), 0), (0, d(1), D_INF),
        (D_TINY, D_TINY, d(1)),
    ]),
    "sqrt.rn.f64": ("ll", [
        (d(3), d(9)), (0x3FF6A09E667F3BCD, d(2)), (D_NEGATIVE, D_NEGATIVE), (D_INF, D_INF),
    ]),
    "rcp.rn.f64": ("ll", [
        (d(0.5), d(2)), (0x3FD5555555555555, d(3)), (D_INF, 0), (D_INF | D_NEGATIVE, D_NEGATIVE),
        (0, D_INF),
    ]),
    "neg.f64": ("ll", [
        (d(-1), d(1)), (D_NEGATIVE, 0), (0, D_NEGATIVE), (D_NAN | D_NEGATIVE, D_NAN),
    ]),
    "copysign.f64": ("lll", [
        (d(-2), d(-1), d(2)), (d(2), 0, d(-2)), (D_NEGATIVE, D_INF | D_NEGATIVE, 0),
    ]),
    "abs.f64": ("ll", [(d(1), d(-1)), (0, D_NEGATIVE), (D_INF, D_INF | D_NEGATIVE)]),
}  # fmt: skip

SMALLEST, LARGEST = -(1 << 63), (1 << 63) - 1
CONVERSION_CASES = {
    "cvt.rn.f32.f64": ("rl", [
        (f(0.1), d(0.1)), (INF, d(1e39)), (MAX, 0x47EFFFFFEFFFFFFF), (INF, 0x47EFFFFFF0000000),
        (0, d(2.0**-150)), (1, d(2.0**-149)), (1, d(1.5 * 2.0**-150)), (2, d(1.5 * 2.0**-149)),
        (f(1), d(1 + 2.0**-24)), (f(1 + 2.0**-22), d(1 + 3 * 2.0**-24)), (NEGATIVE, D_NEGATIVE),
        (NAN, D_NAN), (NAN, 0xFFF8000000000123),
    ]),
    "cvt.f64.f32": ("lr", [
        (0x3FB99999A0000000, f(0.1)), (D_NEGATIVE, NEGATIVE), (d(2.0**-149), TINY), (D_INF, INF),
    ]),
    "cvt.f32.f16": ("rh", [
        (f(1), 0x3C00), (f(-2), 0xC000), (f(2.0**-24), 1), (f(65504), 0x7BFF), (INF, 0x7C00),
        (NEGATIVE, 0x8000), (NAN, 0x7E00), (NAN, 0xFD55),
    ]),
    "cvt.rn.f16.f32": ("hr", [
        (0x3C00, f(1)), (0x7BFF, f(65519)), (0x7C00, f(65520)), (0xFC00, f(-1e6)), (0, f(2.0**-25)),
        (1, f(2.0**-24)), (1, f(1.5 * 2.0**-25)), (0x3C00, f(1 + 2.0**-11)),
        (0x3C02, f(1 + 3 * 2.0**-11)), (0x8000, NEGATIVE), (0x7C00, INF), (0x7FFF, NAN),
        (0x7FFF, QUIET_NAN), (0x7FFF, SIGNALLING_NAN),
    ]),
    "cvt.rn.bf16.f32": ("hr", [
        (0x3F80, f(1)), (0x3F80, 0x3F808000), (0x3F82, 0x3F818000), (0x3F81, 0x3F808001),
        (0x7F80, MAX), (0x7F7F, 0x7F7F7FFF), (0, 0x00008000), (1, 0x00008001), (0x8000, NEGATIVE),
        (0xFF80, INF | NEGATIVE), (0x7FFF, NAN), (0x7FFF, QUIET_NAN), (0x7FFF, SIGNALLING_NAN),
    ]),
    "cvt.rzi.s64.f64": ("ll", [
        (1, d(1.9)), (-1, d(-1.9)), (0, d(-0.9)), (0, D_TINY), (1 << 53, d(2.0**53)),
        (LARGEST, d(2.0**63)), (SMALLEST, d(-(2.0**63))), (SMALLEST, d(-1e300)), (LARGEST, D_INF),
        (SMALLEST, D_INF | D_NEGATIVE), (SMALLEST, D_NAN), (SMALLEST, D_NAN | D_NEGATIVE),
        ((1 << 63) - 1024, d(2.0**63 - 1024)),
    ]),
    "cvt.rzi.s32.f32": ("rr", [
        (1, f(1.9)), (-1, f(-1.9)), (0, f(-0.9)), (0, TINY), (0x7FFFFF80, 0x4EFFFFFF),
        (0x7FFFFFFF, f(2.0**31)), (1 << 31, f(-(2.0**31))), (1 << 31, f(-1e30)),
        (0x7FFFFFFF, INF), (1 << 31, INF | NEGATIVE), (0, NAN), (0, QUIET_NAN),
    ]),
    "cvt.rn.f32.s32": ("rr", [
        (f(5), 5), (f(-5), -5), (f(2.0**24), (1 << 24) + 1), (f(2.0**24 + 4), (1 << 24) + 3),
        (f(2.0**31), 0x7FFFFFFF), (f(-(2.0**31)), 1 << 31),
    ]),
    "cvt.rn.f64.u64": ("ll", [
        (d(5), 5), (d(2.0**53), (1 << 53) + 1), (d(2.0**63), 1 << 63), (d(2.0**64), (1 << 64) - 1),
    ]),
    "cvt.rn.f32.u32": ("rr", [
        (f(5), 5), (f(2.0**24), (1 << 24) + 1), (f(2.0**31), 1 << 31), (f(2.0**32), 0xFFFFFFFF),
    ]),
    "cvt.rn.f32.s64": ("rl", [
        (f(5), 5), (f(-5), -5), (f(2.0**24), (1 << 24) + 1), (f(2.0**24 + 4), (1 << 24) + 3),
        (f(2.0**63), LARGEST), (f(-(2.0**63)), SMALLEST),
        # Rounded to f64 first it would be a tie.
        (f(2.0**60 + 2.0**37), (1 << 60) + (1 << 36) + 1),
    ]),
    "cvt.rn.f64.s64": ("ll", [
        (d(5), 5), (d(-5), -5), (d(2.0**53), (1 << 53) + 1), (d(2.0**53 + 4), (1 << 53) + 3),
        (d(2.0**63), LARGEST),
    ]),
    "cvt.rn.f64.s32": ("lr", [
        (d(5), 5), (d(-5), -5), (d(2147483647), 0x7FFFFFFF), (d(-2147483648), 1 << 31),
    ]),
}  # fmt: skip


def integer_conversion_cases() -> dict:
    """Narrower: the low bits. Wider: zeros, or the sign of the source."""
    cases = {}
    for to, of in product(SIZES, SIZES):
        low, high = min(to, of), max(to, of)
        mask = (1 << low) - 1
        for target, source in product("us", "us"):
            shape = LETTER[to] + LETTER[of]
            rows = [(5, 5), ((1 << low - 1) - 1, (1 << low - 1) - 1)]
            if to < of:
                rows += [(0x1234 & mask, 0xABCD << low | 0x1234), (mask, -1), (0, 1 << low)]
            else:
                rows.append((-2 if source == "s" else (1 << of) - 2, -2))
                wide = ((1 << high) - 1) ^ (mask >> 1) if source == "s" else 1 << of - 1
                rows.append((wide, 1 << of - 1))
            if to != of:
                cases[f"cvt.{target}{to}.{source}{of}"] = shape, rows
    return cases


CASES = {
    **integer_cases(),
    **predicate_cases(),
    **comparison_cases(),
    **FLOAT_CASES,
    **CONVERSION_CASES,
    **integer_conversion_cases(),
    "cvta.to.global.u64": ("ll", [(0x7FFF12345678, 0x7FFF12345678)]),
}

# Those of all spaces, vectors and types, whose values are derived from the bytes in memory.
ACCESS = re.compile(r"(ld|st)((?:\.(?:global|shared|param|nc))*)(?:\.v(\d))?\.([bsuf])(\d+)$")
ATOMIC = re.compile(r"(atom|red)((?:\.\w+)*?)\.(global|shared)\.add\.(u32|s32|u64)$")
ACCESSES = sorted(o for o in OPCODES if ACCESS.match(o))
ATOMICS = sorted(o for o in OPCODES if ATOMIC.match(o))
