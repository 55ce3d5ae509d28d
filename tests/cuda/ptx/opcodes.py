"""The instructions that the interpreter has: for each, the Python that it becomes."""

from __future__ import annotations

from itertools import product

from ptx.emitter import Emit, Emitter
from ptx.faults import UnknownInstruction
from ptx.instruction import Instruction
from ptx.memory_access import access_opcodes
from ptx.numbers import TYPES

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
# True where one operand is NaN: the opposite of the ordered comparison.
UNORDERED = {"equ": "ne", "neu": "eq", "ltu": "ge", "leu": "gt", "gtu": "le", "geu": "lt"}


def computes(expression: str, result: str, *sources: str, relaxed: bool = False) -> Emit:
    """An instruction whose result is an expression of its operands {0}, {1}, ..."""
    is_raw = result == "f32"

    def emit(emitter: Emitter, instruction: Instruction) -> None:
        target, *operands = instruction.operands
        if len(operands) != len(sources):
            raise UnknownInstruction(f"{instruction.kernel}, line {instruction.line}: operands")
        values = [
            emitter.read(o, s, relaxed=relaxed, raw=s == "f32" and result != "f64")
            for o, s in zip(operands, sources, strict=True)
        ]
        if not any(o.startswith("%") for o in operands):
            values[0] = emitter.array(operands[0], sources[0])
        emitter.define(target, expression.format(*values), result, raw=is_raw)

    return emit


def integers() -> dict[str, Emit]:
    table: dict[str, Emit] = {}
    for bits in (16, 32, 64):
        u, half = f"u{bits}", f"u{bits // 2}"
        for kind in (f"s{bits}", u):
            # Sums and low halves of products are the same bits for both.
            table[f"add.{kind}"] = computes("{0} + {1}", u, u, u)
            table[f"sub.{kind}"] = computes("{0} - {1}", u, u, u)
            table[f"mul.lo.{kind}"] = computes("{0} * {1}", u, u, u)
            table[f"mad.lo.{kind}"] = computes("{0} * {1} + {2}", u, u, u, u)
            table[f"min.{kind}"] = computes("np.minimum({0}, {1})", kind, kind, kind)
            table[f"max.{kind}"] = computes("np.maximum({0}, {1})", kind, kind, kind)
            table[f"shr.{kind}"] = computes("numbers.shift_right({0}, {1})", kind, kind, "u32")
            table[f"div.{kind}"] = divides("numbers.divide", kind)
            table[f"rem.{kind}"] = divides("numbers.remainder", kind)
        table[f"neg.s{bits}"] = computes("np.negative({0})", u, u)
        table[f"shl.b{bits}"] = computes("numbers.shift_left({0}, {1})", u, u, "u32")
        if bits > 16:
            wide = f"{{0}}.astype(np.uint{bits}) * {{1}}.astype(np.uint{bits})"
            table[f"mul.wide.{half}"] = computes(wide, u, half, half)
            table[f"bfe.{u}"] = computes("numbers.extract({0}, {1}, {2})", u, u, "u32", "u32")
            insert = "numbers.insert({0}, {1}, {2}, {3})"
            table[f"bfi.b{bits}"] = computes(insert, u, u, u, "u32", "u32")
    return table


def divides(function: str, kind: str) -> Emit:
    def emit(emitter: Emitter, instruction: Instruction) -> None:
        target, *operands = instruction.operands
        dividend, divisor = (emitter.array(o, kind) for o in operands)
        emitter.lines.append(
            f"machine.check_divisor({emitter.constant(instruction)}, {divisor}, thread)"
        )
        emitter.define(target, f"{function}({dividend}, {divisor})", kind)

    return emit


def logic() -> dict[str, Emit]:
    table: dict[str, Emit] = {}
    for kind in ("pred", "b16", "b32", "b64"):
        for name, operator in (("and", "&"), ("or", "|"), ("xor", "^")):
            table[f"{name}.{kind}"] = computes(f"{{0}} {operator} {{1}}", kind, kind, kind)
        table[f"not.{kind}"] = computes("~{0}", kind, kind)
    table["prmt.b32"] = computes("numbers.permute({0}, {1}, {2})", "b32", "b32", "b32", "b32")
    return table


def selections() -> dict[str, Emit]:
    kinds = [f"{k}{bits}" for k, bits in product("bus", (16, 32, 64))] + ["f32", "f64"]
    table = {}
    for kind in kinds:
        bits = f"b{kind[1:]}"
        table[f"selp.{kind}"] = computes("np.where({2}, {0}, {1})", bits, bits, bits, "pred")
    return table


def comparisons() -> dict[str, Emit]:
    table: dict[str, Emit] = {}
    for kind, bits in product("us", (16, 32, 64)):
        for name, operator in COMPARISONS.items():
            t = f"{kind}{bits}"
            table[f"setp.{name}.{t}"] = computes(f"{{0}} {operator} {{1}}", "pred", t, t)
    for name, bits in product(("eq", "ne"), (16, 32, 64)):
        t = f"b{bits}"
        table[f"setp.{name}.{t}"] = computes(f"{{0}} {COMPARISONS[name]} {{1}}", "pred", t, t)
    for t in ("f32", "f64"):
        ordered = {n: f"{{0}} {operator} {{1}}" for n, operator in COMPARISONS.items()}
        # NumPy's != is true of NaN; an ordered comparison is false of it.
        ordered["ne"] = "({0} < {1}) | ({0} > {1})"
        expressions = {**ordered, **{n: f"~({ordered[o]})" for n, o in UNORDERED.items()}}
        expressions["nan"] = "numbers.unordered({0}, {1})"
        expressions["num"] = "~numbers.unordered({0}, {1})"
        for name, expression in expressions.items():
            table[f"setp.{name}.{t}"] = computes(expression, "pred", t, t)
    return table


def floats() -> dict[str, Emit]:
    """Only what says .rn: without it an add may be merged with a mul, and round once less."""
    table: dict[str, Emit] = {}
    for t in ("f32", "f64"):
        for name, operator in (("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/")):
            table[f"{name}.rn.{t}"] = computes(f"{{0}} {operator} {{1}}", t, t, t)
        table[f"sqrt.rn.{t}"] = computes("np.sqrt({0})", t, t)
        bits, sign = f"u{t[1:]}", 1 << int(t[1:]) - 1
        table[f"neg.{t}"] = computes(f"{{0}} ^ np.uint{t[1:]}({sign})", bits, bits)
        # The sign of the first and the magnitude of the second.
        copied = f"({{0}} & np.uint{t[1:]}({sign})) | ({{1}} & np.uint{t[1:]}({sign - 1}))"
        table[f"copysign.{t}"] = computes(copied, bits, bits, bits)
        table[f"abs.{t}"] = computes(f"{{0}} & np.uint{t[1:]}({sign - 1})", bits, bits)
    table["rcp.rn.f32"] = computes("np.float32(1) / {0}", "f32", "f32")
    table["rcp.rn.f64"] = computes("1.0 / {0}", "f64", "f64")
    table["max.f32"] = computes("numbers.larger({0}, {1})", "f32", "f32", "f32")
    table["min.f32"] = computes("numbers.smaller({0}, {1})", "f32", "f32", "f32")
    return table


def conversions() -> dict[str, Emit]:
    table: dict[str, Emit] = {}
    names = [f"{k}{bits}" for k, bits in product("us", (16, 32, 64))]
    for to, of in product(names, names):
        if to[1:] != of[1:]:
            cast = f"{{0}}.astype(np.{TYPES[to].name})"
            table[f"cvt.{to}.{of}"] = computes(cast, to, of, relaxed=True)
    for to, of in product(("f32", "f64"), ("s32", "s64")):
        cast = f"{{0}}.astype(np.{TYPES[to].name})"
        table[f"cvt.rn.{to}.{of}"] = computes(cast, to, of, relaxed=True)
    table["cvt.rn.f64.u64"] = computes("{0}.astype(np.float64)", "f64", "u64")
    table["cvt.rn.f32.u32"] = computes("{0}.astype(np.float32)", "f32", "u32", relaxed=True)
    table["cvt.rzi.s64.f64"] = computes("numbers.to_s64({0})", "s64", "f64")
    table["cvt.rzi.s32.f32"] = computes("numbers.to_s32({0})", "s32", "f32")
    table["cvt.rn.f32.f64"] = computes("{0}.astype(np.float32)", "f32", "f64")
    table["cvt.f64.f32"] = computes("{0}.astype(np.float64)", "f64", "f32")
    table["cvt.f32.f16"] = computes("{0}.astype(np.float32)", "f32", "f16")
    table["cvt.rn.f16.f32"] = computes("numbers.to_f16({0})", "u16", "f32")
    table["cvt.rn.bf16.f32"] = computes("numbers.to_bf16({0})", "u16", "f32")
    return table


def moves() -> dict[str, Emit]:
    kinds = ["pred"] + [f"{k}{bits}" for k, bits in product("bus", (16, 32, 64))] + ["f32", "f64"]
    return {f"mov.{kind}": moves_as(kind) for kind in kinds}


def moves_as(kind: str) -> Emit:
    def emit(emitter: Emitter, instruction: Instruction) -> None:
        target, source = instruction.operands
        bits = kind if kind == "pred" else f"b{kind[1:]}"
        if target.startswith("{"):
            unpack(emitter, target, emitter.array(source, bits), bits)
        elif source.startswith("{"):
            emitter.define(target, pack(emitter, source, bits), bits)
        elif source[0].isalpha() or source[0] in "_$":
            emitter.define(
                target,
                f"np.full(thread.size, np.{TYPES[bits].name}({emitter.symbol(source)}))",
                bits,
            )
        else:
            emitter.define(target, emitter.array(source, bits), bits)

    return emit


def unpack(emitter: Emitter, target: str, value: str, bits: str) -> None:
    """The first register gets the lowest bits."""
    parts = target.strip("{} ").replace(" ", "").split(",")
    part = f"b{int(bits[1:]) // len(parts)}"
    columns = emitter.local(f"{value}.view(np.{TYPES[part].name}).reshape(-1, {len(parts)})")
    for n, register in enumerate(parts):
        emitter.define(register, f"{columns}[:, {n}].copy()", part)


def pack(emitter: Emitter, source: str, bits: str) -> str:
    parts = source.strip("{} ").replace(" ", "").split(",")
    part = f"b{int(bits[1:]) // len(parts)}"
    columns = ", ".join(emitter.array(register, part) for register in parts)
    return f"np.stack(({columns}), axis=1).view(np.{TYPES[bits].name}).ravel()"


def generic_to_global(emitter: Emitter, instruction: Instruction) -> None:
    """An address of the generic space is the same in the global one."""
    target, source = instruction.operands
    emitter.define(target, emitter.array(source, "u64"), "u64")


def largest_of_warp(emitter: Emitter, instruction: Instruction) -> None:
    """Behind the place where the threads of each warp have met."""
    target, source, _ = instruction.operands
    kind = instruction.opcode.rpartition(".")[2]
    values = emitter.array(source, kind)
    emitter.define(target, f"machine.largest_of_warp({values}, thread)", kind)


def fence(emitter: Emitter, instruction: Instruction) -> None:
    emitter.lines.append("machine.fence(thread)")


OPCODES: dict[str, Emit] = {
    **integers(),
    **logic(),
    **selections(),
    **comparisons(),
    **floats(),
    **conversions(),
    **moves(),
    **access_opcodes(),
    "cvta.to.global.u64": generic_to_global,
    **{f"redux.sync.max.{kind}": largest_of_warp for kind in ("s32", "u32")},
    **dict.fromkeys(("membar.gl", "membar.sys"), fence),
    **{f"fence.{o}.{s}": fence for o, s in product(("sc", "acq_rel"), ("gpu", "sys"))},
}
