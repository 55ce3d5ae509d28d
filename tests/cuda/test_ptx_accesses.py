"""The interpreter of PTX: loads, stores and atomics of every space, vector and type."""

from __future__ import annotations

import numpy as np
import pytest

from ptx_cases import ACCESS, ACCESSES, ATOMIC, ATOMICS
from ptx_launches import array, kernel_of, launch, zeros

SHARED = ".shared .align 16 .b8 s[32];\n"
POINTERS = "ld.param.u64 %rd15, [in]; ld.param.u64 %rd16, [out];"
WORDS = (0, 8, 16, 24)
OCTETS = bytes(range(0x81, 0x81 + 32))


def registers(kind: str, size: int, count: int) -> list[str]:
    is_float = kind == "f"
    prefix = {32: "%f" if is_float else "%r", 64: "%fd" if is_float else "%rd"}.get(size, "%rs")
    return [f"{prefix}{n + 1}" for n in range(count)]


def vector(names: list[str]) -> str:
    return f"{{{', '.join(names)}}}" if len(names) > 1 else names[0]


def parts(opcode: str) -> tuple[str, str, int, int]:
    _, space, count, kind, size = ACCESS.match(opcode).groups()
    return space, kind, int(size), int(count or 1)


@pytest.mark.parametrize("opcode", [o for o in ACCESSES if o.startswith("ld")])
def test_loads(opcode):
    """Bytes in little-endian order, and what is narrower than its register filled by its type."""
    space, kind, size, count = parts(opcode)
    names, held = registers(kind, size, count), max(size, 16)
    body = SHARED + POINTERS
    for n in WORDS if space == ".shared" else ():
        body += f"ld.global.u64 %rd9, [%rd15+{n}]; st.shared.u64 [s+{n}], %rd9;"
    place = {".shared": "s+16", ".param": "bytes+16"}.get(space, "%rd15+16")
    body += f"{opcode} {vector(names)}, [{place}];"
    body += "".join(f"st.global.b{held} [%rd16+{8 * n}], {name};" for n, name in enumerate(names))
    kernel = kernel_of(body, ".param .align 16 .b8 bytes[32], .param .u64 in, .param .u64 out")
    given, out = array(list(OCTETS), np.uint8), zeros(4)
    launch(kernel, OCTETS, given, out)
    step = size // 8
    for n in range(count):
        octets = OCTETS[16 + n * step : 16 + (n + 1) * step]
        assert out[n] == int.from_bytes(octets, "little", signed=kind == "s") & (1 << held) - 1


@pytest.mark.parametrize("opcode", [o for o in ACCESSES if o.startswith("st")])
def test_stores(opcode):
    """The low bits of the registers, and no byte beside them."""
    space, kind, size, count = parts(opcode)
    names, held, step = registers(kind, size, count), max(size, 16), size // 8
    body = SHARED + POINTERS
    body += "".join(f"ld.global.b{held} {name}, [%rd15+{8 * n}];" for n, name in enumerate(names))
    if space == ".shared":
        body += "".join(f"st.shared.u64 [s+{n}], 0;" for n in WORDS)
        body += f"{opcode} [s+16], {vector(names)};"
        for n in WORDS:
            body += f"ld.shared.u64 %rd9, [s+{n}]; st.global.u64 [%rd16+{n}], %rd9;"
    else:
        body += f"{opcode} [%rd16+16], {vector(names)};"
    given, out = array([0x8182838485868788 + n for n in range(4)]), zeros(4)
    launch(kernel_of(body), given, out)
    octets = b"".join(given[n : n + 1].tobytes()[:step] for n in range(count))
    assert out.tobytes() == bytes(16) + octets.ljust(16, b"\0")


@pytest.mark.parametrize("opcode", ATOMICS)
@pytest.mark.parametrize("seed", [0, 1])
def test_atomics(opcode, seed):
    """Each of 64 threads adds 3, beyond the type's width: each old value is seen once."""
    name, _, space, kind = ATOMIC.match(opcode).groups()
    bits, threads = int(kind[1:]), 64
    register, first = {32: "%r", 64: "%rd"}[bits], (1 << bits) - 90
    place = "[s]" if space == "shared" else "[%rd15]"
    body = f"""{SHARED}{POINTERS}
      mov.u32 %r9, %tid.x; mul.wide.u32 %rd8, %r9, 8; add.s64 %rd9, %rd16, %rd8;
      mov.u{bits} {register}1, {first}; setp.eq.s32 %p1, %r9, 0;
      @%p1 st.{space}.u{bits} {place}, {register}1;
      bar.sync 0;
      {opcode} {register + "2, " if name == "atom" else ""}{place}, 3;
      bar.sync 0;
      @%p1 ld.{space}.u{bits} {register}3, {place};
      @%p1 st.global.u{bits} [%rd16+{8 * threads}], {register}3;
    """
    if name == "atom":
        body += f"st.global.u{bits} [%rd9], {register}2;"
    counter, out = zeros(1), zeros(threads + 1)
    launch(kernel_of(body), counter, out, threads=threads, seed=seed)
    assert out[threads] == (first + 3 * threads) % (1 << bits)
    if name == "atom":
        in_order = [(first + 3 * n) % (1 << bits) for n in range(threads)]
        assert sorted(out[:threads].tolist()) == sorted(in_order)
        assert out[:threads].tolist() != in_order
