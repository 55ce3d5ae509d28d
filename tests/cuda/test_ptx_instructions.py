"""The interpreter of PTX: every instruction on its own, against values written by hand."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ptx import OPCODES, Fault, UnknownInstruction
from ptx_cases import ACCESSES, ATOMICS, CASES, D_INF, D_NAN, d
from ptx_launches import array, kernel_of, launch, zeros

WIDTH = {"p": 32, "h": 16, "r": 32, "l": 64}
REGISTER = {"p": "%p", "h": "%rs", "r": "%r", "l": "%rd"}


def operand_load(letter: str, n: int) -> str:
    """The thread's operand: words of 64 bits, a column for each operand."""
    width, place = WIDTH[letter], f"[%rd15+{8 * n}]"
    if letter == "p":
        return f"ld.global.u32 %r{n}, {place}; setp.ne.s32 %p{n}, %r{n}, 0;"
    return f"ld.global.u{width} {REGISTER[letter]}{n}, {place};"


def body_of(opcode: str, shape: str, immediates: dict[int, int]) -> str:
    columns = len(shape)
    lines = [
        "ld.param.u64 %rd14, [in]; ld.param.u64 %rd16, [out]; mov.u32 %r15, %tid.x;",
        f"mul.wide.u32 %rd17, %r15, {8 * columns}; add.s64 %rd15, %rd14, %rd17;",
        "mul.wide.u32 %rd17, %r15, 8; add.s64 %rd16, %rd16, %rd17;",
    ]
    lines += [operand_load(letter, n) for n, letter in enumerate(shape) if n]
    operands = [
        str(immediates[n]) if n in immediates else f"{REGISTER[letter]}{n}"
        for n, letter in enumerate(shape)
    ]
    lines.append(f"{opcode} {', '.join(operands)};")
    if shape[0] == "p":
        lines.append("selp.u32 %r0, 1, 0, %p0; st.global.u32 [%rd16], %r0;")
    else:
        lines.append(f"st.global.u{WIDTH[shape[0]]} [%rd16], {operands[0]};")
    return "\n".join(lines)


def results(opcode: str, shape: str, rows: list, immediates: dict[int, int] | None = None) -> list:
    kernel = kernel_of(body_of(opcode, shape, immediates or {}))
    given = array([value & (1 << 64) - 1 for row in rows for value in row])
    out = zeros(len(rows))
    launch(kernel, given, out, threads=len(rows))
    return out.tolist()


def expected(shape: str, rows: list) -> list:
    mask = (1 << WIDTH[shape[0]]) - 1
    return [row[0] & mask for row in rows]


@pytest.mark.parametrize("opcode", sorted(CASES))
def test_values(opcode):
    shape, rows = CASES[opcode]
    assert [hex(x) for x in results(opcode, shape, rows)] == [hex(x) for x in expected(shape, rows)]


IMMEDIATE = sorted(
    o for o, (shape, _) in CASES.items() if o.partition(".")[0] not in ("cvta", "selp")
)


@pytest.mark.parametrize("opcode", IMMEDIATE)
def test_values_of_an_immediate(opcode):
    """The last operand as a constant; floats as 0f and 0d."""
    shape, rows = CASES[opcode]
    last = len(shape) - 1
    source = opcode.rpartition(".")[2]
    for row in rows[:4]:
        value = row[last]
        if source in ("f16", "f32", "f64"):
            value = f"0{'d' if source == 'f64' else 'f'}{value:0{WIDTH[shape[last]] // 4}X}"
        if source != "f16":
            got = results(opcode, shape, [row], {last: value})
            assert (opcode, row, got) == (opcode, row, expected(shape, [row]))


# ---- moves that are not of one value ----
OTHER_MOVES = {
    "mov.b32 %r1, {%rs1, %rs2};": ("mov.u16 %rs1, 0x12; mov.u16 %rs2, 0xabcd;", "%r1", 0xABCD0012),
    "mov.b64 %rd1, {%r1, %r2};": ("mov.u32 %r1, 1; mov.u32 %r2, 2;", "%rd1", 0x200000001),
    "mov.b32 {%rs1, %rs2}, %r1;": ("mov.u32 %r1, 0xabcd1234;", "%rs2", 0xABCD),
    "mov.b32 {%rs2, %rs1}, %r1;": ("mov.u32 %r1, 0xabcd1234;", "%rs2", 0x1234),
    "mov.b64 {%r1, %r2}, %rd1;": ("mov.u64 %rd1, 0x200000001;", "%r2", 2),
    "mov.u32 %r1, %ntid.x;": ("", "%r1", 1),
    "mov.u32 %r1, %nctaid.x;": ("", "%r1", 1),
    "mov.u32 %r1, %ctaid.x;": ("", "%r1", 0),
    "{ .reg .b16 low; mov.b32 {low, %rs1}, %r1; }": ("mov.u32 %r1, 0xabcd1234;", "%rs1", 0xABCD),
}  # fmt: skip


@pytest.mark.parametrize("statement", OTHER_MOVES)
def test_other_moves(statement):
    before, register, value = OTHER_MOVES[statement]
    width = {"%rs": 16, "%r": 32, "%rd": 64}[register.rstrip("0123456789")]
    body = f"{before}{statement} ld.param.u64 %rd9, [out];"
    kernel = kernel_of(f"{body} st.global.u{width} [%rd9], {register};")
    out = zeros(1)
    launch(kernel, 0, out)
    assert out[0] == value


# ---- the whole table ----
# Branches, barriers and fences have their tests among those of the kernels and of the memory, and
# what a warp does together has a file of its own.
FENCES = {
    "membar.gl",
    "membar.sys",
    *(f"fence.{o}.{s}" for o in ("sc", "acq_rel") for s in ("gpu", "sys")),
}
OF_A_WARP = {"redux.sync.max.s32", "redux.sync.max.u32"}


def test_every_instruction_has_a_case():
    assert set(OPCODES) == {*CASES, *ACCESSES, *ATOMICS, *FENCES, *OF_A_WARP}


@pytest.mark.parametrize(
    "statement",
    [
        "fma.rn.f32 %f1, %f1, %f1, %f1;",
        "add.f32 %f1, %f1, %f1;",  # may be contracted with a product
        "add.rn.ftz.f32 %f1, %f1, %f1;",
        "cvt.rni.s64.f64 %rd1, %fd1;",
        "membar.cta;",
        "bar.sync 0, 64;",
        "shfl.sync.idx.b32 %r1, %r1, 0, 31, 0xffffffff;",
        "call (%r1), function, (%r2);",
        ".local .align 8 .b8 depot[16];",
    ],
)
def test_what_is_unknown_is_named(statement):
    opcode = statement.split()[0].rstrip(";")
    with pytest.raises(UnknownInstruction, match=re.escape(opcode)):
        launch(
            kernel_of(f"mov.f32 %f1, 0f3F800000; mov.f64 %fd1, 0d0000000000000000; {statement}"),
            0,
            0,
        )


@pytest.mark.parametrize(
    "statement",
    [
        "add.rn.f32 %f1, %fd1, %f1;",
        "mov.u32 %r1, nowhere;",
        "add.s32 %x1, %r1, 1;",
        "add.s32 %r1, %p1, 1;",
        "mov.u64 %rd1, %tid.x;",
    ],
)
def test_operands_that_do_not_fit_are_refused(statement):
    with pytest.raises(UnknownInstruction, match="kernel"):
        launch(kernel_of(statement), 0, 0)


@pytest.mark.parametrize("opcode", ["div.u32", "rem.u32", "div.s32", "rem.s32"])
def test_division_by_zero_is_a_fault(opcode):
    with pytest.raises(Fault, match=f"integer division by zero.*{opcode}.*block 0, thread 2"):
        results(opcode, "rrr", [(0, 1, 1), (0, 1, 1), (0, 1, 0)])


def test_nan_of_f64_stays_a_nan():
    """PTX says no more of it: which NaN is left to the processor."""
    for opcode, row in (("add.rn.f64", (0, D_NAN, d(1))), ("sub.rn.f64", (0, D_INF, D_INF))):
        (bits,) = results(opcode, "lll", [row])
        assert np.isnan(np.uint64(bits).view(np.float64))
