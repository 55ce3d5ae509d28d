"""The code of the built extension: vectorised loops, no fused multiply-add, one ISA a kernel."""

from __future__ import annotations

import platform
import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from fusedopt import _native
from fusedopt.checking.rows import ROWS

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "csrc" / "cpu" / "kernels.h"
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions")

ARITHMETIC = re.compile(r"v?(add|sub|mul|div|sqrt|max)p[sd]$")
# By function, and number of the format in core/format.h.
CONVERSION = {
    ("decode_block", 2): re.compile(r"v?(pslld|pmovzxwd|punpck\w+)$"),
    ("encode_block", 2): re.compile(r"v?(psrld|paddd|pand|pandd|pblendvb|packus\w+)$"),
    ("decode_block", 3): re.compile(r"vcvtph2ps$"),
    ("encode_block", 3): re.compile(r"vcvtps2ph$"),
    ("encode_block", 4): re.compile(r"v?(psrld|paddd)$"),
    ("decode_block", 5): re.compile(r"v?(pslld|por|pord|psub\w|padd\w)$"),
    ("encode_block", 5): re.compile(r"v?(psrld|paddd)$"),
    ("decode_block", 6): re.compile(r"v?cvtdq2ps$"),
    ("decode_block", 7): re.compile(r"v?cvtdq2ps$"),
    ("encode_block", 6): re.compile(r"v?cvttps2dq$"),
    ("encode_block", 7): re.compile(r"v?cvttps2dq$"),
}
FLOAT16 = 3
# The numbers of the combinations of formats that have it.
WITH_FLOAT16 = [
    number
    for number, mix in enumerate(
        re.findall(r"^ +FormatMix\{(.*)\},$", KERNELS.read_text(), re.MULTILINE)
    )
    if "Format::kFloat16" in mix
]
# What a block of a format is done by, where that is not inlined: by whether codes have a sign.
CODES = {6: "true", 7: "false"}
FUSED = re.compile(r"vf(n?m)(add|sub)")
# Of numbers whose squares are exact in double: all formats of core/format.h but that of doubles.
EXACT_SQUARES = re.compile(r"::add_squares<(\(fusedopt::Format\))?[023]>")
REGISTERS = {"baseline": "xmm", "avx2": "ymm", "avx512": "zmm"}


@pytest.fixture(scope="module")
def functions() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """Instructions of every function of the extension, by address and name."""
    text = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", _native.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    result = defaultdict(list)
    key = None
    for line in text.splitlines():
        if header := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
            key = (header[1], header[2])
        elif key and (instruction := re.match(r"^\s+[0-9a-f]+:\s+(\S+)\s*(.*)$", line)):
            result[key].append((instruction[1], instruction[2]))
    return result


def widest(instructions) -> str:
    operands = " ".join(operands for _, operands in instructions)
    return next((isa for isa in ("avx512", "avx2") if REGISTERS[isa] in operands), "baseline")


def named(functions, pattern):
    """Functions by demangled name, each with one body an instruction set."""
    bodies = defaultdict(list)
    for (_, name), instructions in functions.items():
        if re.search(pattern, name):
            bodies[name].append(instructions)
    return bodies


def test_every_kernel_is_vectorised_for_every_isa(functions):
    kernels = named(functions, r"::kernel<")
    assert len({re.search(r"kernel<fusedopt::(\w+)", name)[1] for name in kernels}) >= len(ROWS) - 1
    for name, bodies in kernels.items():
        packed = Counter()
        for body in bodies:
            register = REGISTERS[widest(body)]
            packed[register] = sum(
                bool(ARITHMETIC.match(op)) and register in operands for op, operands in body
            )
        # SSE2 does not convert float16: there it goes through blocks.
        formats = int(re.search(r", (\d+)ul>\(", name)[1])
        isas = set(REGISTERS) - ({"baseline"} if formats in WITH_FLOAT16 else set())
        assert len(bodies) == len(isas), f"{name}: one body an instruction set"
        for register in (REGISTERS[isa] for isa in isas):
            # At least the products with the shared scalars and one sum.
            assert packed[register] >= 3, f"{name}: {packed} packed operations"


def test_roots_and_quotients_are_vectorised(functions):
    """The slow operations, in the widest register, for the rules that have them."""
    headers = [path.read_text() for path in (ROOT / "csrc" / "rules").glob("*.h")]
    divides = [text for text in headers if "square_root(" in text and " / " in text]
    rules = [
        rule for text in divides for rule in re.findall(r"^struct (\w+) \{", text, re.MULTILINE)
    ]
    assert len(rules) >= 4
    for rule in rules:
        for name, bodies in named(functions, rf"::kernel<fusedopt::{rule},").items():
            for body in bodies:
                register = REGISTERS[widest(body)]
                wide = {op for op, operands in body if register in operands}
                assert any(re.match(r"v?sqrtp", op) for op in wide), name
                assert any(re.match(r"v?divp", op) for op in wide), name


@pytest.mark.parametrize("conversion", CONVERSION)
def test_conversions_are_vectorised(functions, conversion):
    name, number = conversion
    of_codes = name.replace("block", f"codes<{CODES.get(number)}, float>")
    found = named(functions, rf"::({name}<(\(fusedopt::Format\))?{number}, float>|{of_codes})")
    bodies = max(found.values(), key=lambda bodies: sum(map(len, bodies)))
    assert len(bodies) == 3
    for body in bodies:
        isa = widest(body)
        if number == FLOAT16 and isa == "baseline":
            continue  # SSE2 has no conversion of float16
        assert any(
            CONVERSION[conversion].match(op) and REGISTERS[isa] in operands for op, operands in body
        ), f"{conversion}, {isa}"


def test_codes_are_looked_up_where_the_cpu_can(functions):
    """All four bytes of a value, in two tables of 128 each, and nowhere else."""
    found = named(functions, r"::look_up_block<")
    assert len(found) == 2
    for name, bodies in found.items():
        (body,) = bodies
        looked_up = sum(bool(re.match("vperm[it]2b$", op)) and "zmm" in at for op, at in body)
        assert looked_up >= 8, name
    for (_, name), body in functions.items():
        assert "look_up_block<" in name or not any(re.match("vperm[it]2b$", op) for op, _ in body)


def test_sums_of_squares_are_vectorised(functions):
    """Products and sums of as many registers as are summed together."""
    found = named(functions, r"::add_squares<")
    assert len(found) == 4
    for name, bodies in found.items():
        assert {widest(body) for body in bodies} == set(REGISTERS)
        for body in bodies:
            register = REGISTERS[widest(body)]
            packed = Counter(op for op, operands in body if register in operands)
            fused = sum(packed[op] for op in packed if re.match(FUSED, op))
            assert fused + sum(packed[op] for op in ("mulpd", "vmulpd")) >= 8, name
            assert fused + sum(packed[op] for op in ("addpd", "vaddpd")) >= 8, name


@pytest.mark.parametrize(("function", "op"), [("shrink_block", "sub"), ("average_block", "mul")])
def test_what_follows_a_step_is_vectorised(functions, function, op):
    found = named(functions, f"::{function}<")
    assert len(found) == 2
    for name, bodies in found.items():
        assert {widest(body) for body in bodies} == set(REGISTERS)
        kind = "ps" if "<float>" in name else "pd"
        for body in bodies:
            register = REGISTERS[widest(body)]
            packed = Counter(op for op, operands in body if register in operands)
            assert packed[op + kind] + packed[f"v{op}{kind}"] > 0, name


def test_no_fused_multiply_add_and_no_approximation(functions):
    """A product that is exact may be fused: the sum has the same bits."""
    for (_, name), body in functions.items():
        for op, _ in body:
            assert not FUSED.match(op) or EXACT_SQUARES.search(name), name
            assert not re.match(r"v?(rcp|rsqrt)(14|28)?[ps]s", op), name


def test_wide_registers_stay_in_their_kernels(functions):
    """Code of one instruction set that is linked in for all would crash older CPUs."""
    for (_, name), body in functions.items():
        if widest(body) != "baseline":
            templates = (
                r"kernel|update_(tail|parts)|(de|en)code_\w+|look_up_\w+|find_ranges|add_squares"
                r"|\w+_block"
            )
            own = rf"::({templates})<|::draw_(group|random_bits)\("
            assert re.search(own, name), name


def test_isa_objects_export_only_their_table(functions):
    symbols = subprocess.run(
        ["nm", "--demangle", _native.__file__], capture_output=True, text=True, check=True
    ).stdout
    found = r" [A-Za-z] fusedopt::cpu::(\w+)::(\w*kernel_table)$"
    tables = set(re.findall(found, symbols, re.MULTILINE))
    assert tables == {
        *((isa, "kernel_table") for isa in REGISTERS),
        ("avx512", "vbmi_kernel_table"),
    }
    weak = re.findall(r" [WVu] (fusedopt::.*(?:Adam|Sgd)::update.*)$", symbols, re.MULTILINE)
    assert not weak
