"""The interpreter of PTX: faults that are planted, and found where they are."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import Memory
from ptx_kernels import POINTERS, block_sum, vector_add
from ptx_launches import array, fault_of, found, kernel_of, launch, zeros


# ---- bounds, alignment, permissions ----
def test_one_element_out_of_bounds():
    a, b, out = (zeros(100, np.float32) for _ in range(3))
    fault = fault_of(vector_add("gt"), a, b, out, 100, threads=128)
    assert fault.reason == "out of bounds: 4 bytes"
    assert (fault.kernel, fault.block, fault.thread) == ("kernel", 0, 100)
    assert fault.address == a.ctypes.data + 400
    assert fault.instruction == "ld.global.f32 %f1, [%rd1]"
    assert found(fault, "0 bytes behind the end of 'a'", f"line {fault.line}: ld.global.f32")


@pytest.mark.parametrize("missing", ["a", "b", "out"])
def test_every_array_has_its_own_bounds(missing):
    arrays = {name: zeros(99 if name == missing else 100, np.float32) for name in ("a", "b", "out")}
    fault = fault_of(vector_add(), *arrays.values(), 100, blocks=4, threads=32)
    assert (fault.block, fault.thread) == (3, 3)
    assert found(fault, f"behind the end of '{missing}'")


def test_an_access_across_the_end():
    values = zeros(10, np.uint8)
    kernel = kernel_of(POINTERS + "ld.global.u32 %r2, [%rd1+4]; ld.global.u32 %r2, [%rd1+8];")
    assert found(fault_of(kernel, values, 0), "out of bounds", "byte 8 of 'in'")


def test_nothing_is_registered_there():
    kernel = kernel_of(POINTERS + "ld.global.u32 %r2, [%rd1];")
    assert found(fault_of(kernel, 64, zeros(1)), "out of bounds", "address 0x40", "ahead of every")
    assert found(fault_of(kernel, 64, 64), "out of bounds", "address 0x40")


@pytest.mark.parametrize(
    ("access", "shift"),
    [("u16", 1), ("u32", 2), ("u64", 4), ("v2.f32", 4), ("v4.f32", 8), ("v2.f64", 8)],
)
def test_misaligned(access, shift):
    """A vector is aligned to the whole of it."""
    registers = {"v2.f32": "{%f1, %f2}", "v4.f32": "{%f1, %f2, %f3, %f4}", "v2.f64": "{%fd1, %fd2}"}
    register = registers.get(access, {"u16": "%rs1", "u32": "%r2", "u64": "%rd3"}.get(access))
    kernel = kernel_of(POINTERS + f"ld.global.{access} {register}, [%rd1+{shift}];")
    assert found(
        fault_of(kernel, zeros(4), zeros(1)), "misaligned access of", f"byte {shift} of 'in'"
    )


def test_memory_that_nobody_wrote():
    values, out, memory = zeros(8, np.uint32), zeros(8, np.uint32), Memory()
    written = np.ones(32, bool)
    written[21] = False
    memory.register(values.ctypes.data, 32, name="in", written=written)
    memory.register(out.ctypes.data, 32, name="out", written=False)
    kernel = kernel_of(
        POINTERS
        + """mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
        ld.global.u32 %r2, [%rd4]; st.global.u32 [%rd5], %r2; ld.global.u32 %r3, [%rd5];"""
    )
    launch(kernel, values, out, threads=5, memory=memory)
    fault = fault_of(kernel, values, out, threads=8, memory=memory)
    assert fault.reason == "read of memory that was never written"
    assert (fault.thread, fault.region) == (5, "byte 20 of 'in'")
    count = kernel_of("ld.param.u64 %rd2, [out]; red.global.add.u32 [%rd2+28], 1;")
    assert fault_of(count, values, out, memory=memory).region == "byte 28 of 'out'"
    # What a store has written may be read, in this launch and in the next.
    later = kernel_of(POINTERS + "ld.global.u32 %r2, [%rd2+16]; ld.global.u32 %r2, [%rd2+20];")
    assert fault_of(later, values, out, memory=memory).region == "byte 20 of 'out'"


@pytest.mark.parametrize(
    ("permission", "statement", "reason"),
    [
        ("writable", "st.global.u32 [%rd1], %r1;", "write of memory that may not be written"),
        ("readable", "ld.global.u32 %r2, [%rd1];", "read of memory that may not be read"),
        ("writable", "red.global.add.u32 [%rd1], 1;", "atomic on memory that may not be"),
        ("readable", "red.global.add.u32 [%rd1], 1;", "atomic on memory that may not be"),
    ],
)
def test_what_may_not_be(permission, statement, reason):
    values, memory = zeros(1, np.uint32), Memory()
    memory.register(values.ctypes.data, 4, name="in", **{permission: False})
    assert found(fault_of(kernel_of(POINTERS + statement), values, 0, memory=memory), reason)
    allowed = Memory()
    allowed.register(values.ctypes.data, 4)
    launch(kernel_of(POINTERS + statement), values, 0, memory=allowed)


def test_permissions_of_single_bytes():
    """A strided tensor: only its elements may be touched, here every other one."""
    values = zeros(16, np.uint32)
    kernel = kernel_of(
        POINTERS
        + """ld.param.u64 %rd6, [out]; mul.wide.u32 %rd3, %r1, 8; add.s64 %rd4, %rd1, %rd3;
        add.s64 %rd4, %rd4, %rd6; st.global.u32 [%rd4], %r1;"""
    )
    for shift in (0, 4):
        memory = Memory()
        mask = np.repeat(np.arange(16) % 2 == 0, 4)
        memory.register(values.ctypes.data, 64, name="elements", writable=mask, readable=mask)
        if shift:
            fault = fault_of(kernel, values, shift, threads=8, memory=memory)
            assert found(fault, "may not be written", "byte 4 of 'elements'", "thread 0")
        else:
            launch(kernel, values, shift, threads=7, memory=memory)
            assert values.tolist() == [n // 2 if n % 2 == 0 else 0 for n in range(14)] + [0, 0]
            assert (memory.untouched("elements"), memory.unwritten("elements")) == (4, 4)


def test_allocations_may_overlap():
    """Two tensors of one storage: each allows its own bytes."""
    values, memory = zeros(4, np.uint32), Memory()
    even = np.repeat([True, False, True, False], 4)
    memory.register(values.ctypes.data, 16, name="even", readable=even, writable=even)
    memory.register(values.ctypes.data + 4, 12, name="odd", readable=~even[4:], writable=False)
    kernel = kernel_of(POINTERS + "ld.global.u32 %r2, [%rd1+4]; st.global.u32 [%rd1+8], %r2;")
    launch(kernel, values, 0, memory=memory)
    assert (memory.untouched("even"), memory.untouched("odd")) == (4, 4)
    assert (memory.unwritten("even"), memory.unwritten("odd")) == (4, 0)
    kernel = kernel_of(POINTERS + "st.global.u32 [%rd1+12], %r1;")
    fault = fault_of(kernel, values, 0, memory=memory)
    assert found(fault, "may not be written", "byte 12 of 'even' and 'odd'")


def test_an_address_of_its_own():
    values, memory = zeros(4, np.uint32), Memory()
    memory.register(0x7000_0000_0000, 16, host=values.ctypes.data, name="in")
    kernel = kernel_of(POINTERS + "st.global.u32 [%rd1+8], 7;")
    launch(kernel, 0x7000_0000_0000, 0, memory=memory)
    assert values.tolist() == [0, 0, 7, 0]
    assert found(fault_of(kernel, values, 0, memory=memory), "out of bounds")


def test_what_is_touched_is_counted():
    a, b, out, memory = *(zeros(100, np.float32) for _ in range(3)), Memory()
    for name, values, writable in (("a", a, False), ("b", b, False), ("out", out, True)):
        memory.register(values.ctypes.data, 400, name=name, writable=writable)
    launch(vector_add(), a, b, out, 90, blocks=3, threads=32, memory=memory)
    assert [memory.untouched(name) for name in ("a", "b", "out")] == [40, 40, 40]
    assert [memory.unwritten(name) for name in ("a", "b", "out")] == [0, 0, 40]
    launch(vector_add(), a, b, out, 100, blocks=4, threads=32, order=[3], memory=memory)
    assert [memory.untouched(name) for name in ("a", "b", "out")] == [24, 24, 24]


def test_parameters_end():
    kernel = kernel_of("ld.param.u64 %rd1, [out+8];")
    assert found(fault_of(kernel, 0, 0), "out of bounds", "16 bytes of parameters")
    kernel = kernel_of("ld.param.u64 %rd1, [in+4];")
    assert found(fault_of(kernel, 0, 0), "misaligned")


def test_one_instruction_in_several_allocations():
    """Some of which have been accessed by single bytes before."""
    arrays = [zeros(4, np.uint32) for _ in range(6)]
    memory, pointers = Memory(), array([a.ctypes.data for a in arrays])
    for n, values in enumerate(arrays):
        memory.register(values.ctypes.data, 16, name=str(n), written=n % 2 == 0)
    memory.register(pointers.ctypes.data, 48, name="pointers")
    own = (
        POINTERS
        + "mul.wide.u32 %rd3, %r1, 8; add.s64 %rd4, %rd1, %rd3; ld.global.u64 %rd5, [%rd4];"
    )
    single = own + "setp.gt.u32 %p1, %r1, 2; @%p1 st.global.u8 [%rd5+5], 7;"
    launch(kernel_of(single), pointers, 0, threads=6, memory=memory)
    whole = own + "st.global.v4.u32 [%rd5], {%r1, %r1, %r1, %r1}; ld.global.u64 %rd6, [%rd5+8];"
    launch(kernel_of(whole), pointers, 0, threads=6, memory=memory)
    assert [values.tolist() for values in arrays] == [[n] * 4 for n in range(6)]
    assert [memory.unwritten(str(n)) for n in range(6)] == [0] * 6
    fault = fault_of(kernel_of(own + "st.global.u32 [%rd5+16], 1;"), pointers, 0, memory=memory)
    assert found(fault, "out of bounds", "0 bytes behind the end of '0'")


def test_nothing_to_touch():
    memory = Memory()
    memory.register(0x1000, 0, name="empty")
    launch(kernel_of(""), 0, 0, memory=memory)
    assert (memory.untouched("empty"), memory.unwritten("empty")) == (0, 0)


# ---- barriers and shared memory ----
@pytest.mark.parametrize("behind", ["setp.ge", "ld.shared"])
def test_a_barrier_is_missing(behind):
    """The one in the loop, or the one behind it."""
    kernel = block_sum(without=f"bar.sync 0;\n  {behind}", instead=behind)
    fault = fault_of(kernel, zeros(64, np.uint32), zeros(1, np.uint32), threads=64)
    assert found(fault, "race with the write of block 0", "ld.shared.u32", "of 'sums'")


@pytest.mark.parametrize(
    "branch", ["@%p1 bra DONE;", "@%p1 bra OTHER;"], ids=["exits", "another barrier"]
)
def test_a_barrier_that_not_all_threads_reach(branch):
    kernel = kernel_of(
        POINTERS
        + f"""setp.eq.u32 %p1, %r1, 7; {branch}
        bar.sync 0;
        bra.uni DONE;
OTHER:
        bar.sync 0;
DONE:"""
    )
    fault = fault_of(kernel, 0, 0, blocks=2, threads=32)
    assert found(fault, "a barrier that not all threads of the block reach", "bar.sync 0")
    launch(kernel, 0, 0, blocks=2, threads=1)


def test_shared_memory_that_nobody_wrote_is_poison():
    """A compiler may load early what it does not use: so it is counted, and no fault."""
    kernel = kernel_of(
        POINTERS
        + ".shared .align 8 .b8 s[16];\nld.shared.u64 %rd3, [s+8]; st.global.u64 [%rd2], %rd3;"
    )
    out = zeros(1)
    statistics = launch(kernel, 0, out)
    assert out[0] == 0xA5A5A5A5A5A5A5A5
    assert statistics.poisoned_reads == 1


def test_shared_memory_starts_anew_in_every_block():
    body = ".shared .align 4 .u32 s;\n ld.shared.u32 %r2, [s]; st.shared.u32 [s], %r1;"
    for batch in (1, 2):
        statistics = launch(kernel_of(POINTERS + body), 0, 0, blocks=3, batch=batch)
        assert statistics.poisoned_reads == 3


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("ld.shared.u32 %r2, [first+8];", "out of bounds.*behind the end of 'first'"),
        ("ld.shared.u32 %r2, [first+2];", "misaligned"),
        ("mov.u32 %r2, second; ld.shared.u32 %r3, [%r2+-4];", "behind the end of 'first'"),
        ("st.shared.u32 [second+4096], %r1;", "out of bounds.*outside of shared memory"),
        ("st.shared.u32 [second+4], %r1;", "out of bounds.*behind the end of 'second'"),
    ],
)
def test_every_shared_variable_has_its_own_bounds(statement, reason):
    shared = ".shared .align 8 .b8 first[8];\n.shared .align 4 .u32 second;\n"
    assert found(fault_of(kernel_of(POINTERS + shared + statement), 0, 0, blocks=3), reason)


def test_a_fault_in_shared_memory_names_the_address_of_the_block():
    kernel = kernel_of(
        POINTERS
        + """.shared .align 16 .b8 s[64];
        mov.u32 %r2, %ctaid.x; shl.b32 %r2, %r2, 4; mov.u32 %r3, s; add.s32 %r3, %r3, %r2;
        ld.shared.u64 %rd3, [%r3+8];"""
    )
    fault = fault_of(kernel, 0, 0, blocks=5)
    assert (fault.block, fault.address, fault.region) == (4, 72, "8 bytes behind the end of 's'")


def test_a_register_that_nobody_wrote():
    fault = fault_of(kernel_of("add.s32 %r2, %r1, 1; st.global.u32 [%rd1], %r2;"), 0, 0)
    assert found(fault, "%r1 was never written|%rd1 was never written")


def test_a_register_that_some_threads_did_not_write():
    """PTX allows it where they do not use it; what they get means nothing."""
    kernel = kernel_of(
        POINTERS
        + """setp.eq.u32 %p1, %r1, 1; @%p1 mov.u32 %r2, 5; selp.u32 %r3, %r2, 6, %p1;
        mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd2, %rd3; st.global.u32 [%rd2], %r3;"""
    )
    out = zeros(4, np.uint32)
    launch(kernel, 0, out, threads=4)
    assert out.tolist() == [6, 5, 6, 6]


# ---- what a test may register ----
def test_what_cannot_be_registered():
    memory = Memory()
    with pytest.raises(ValueError, match="aligned"):
        memory.register(0x1004, 4, host=0x2008)
    with pytest.raises(ValueError, match="a mask of 3 bytes for 4"):
        memory.register(0x1000, 4, readable=np.ones(3, bool))
    memory.register(0x1000, 32, host=0x3000, name="x")
    memory.register(0x1010, 32, host=0x4010, name="y")
    with pytest.raises(ValueError, match="x and y overlap for the kernel but not here"):
        launch(kernel_of(""), 0, 0, memory=memory)
    with pytest.raises(KeyError, match="z"):
        memory.untouched("z")
    used = Memory()
    launch(kernel_of(""), 0, 0, memory=used)
    with pytest.raises(ValueError, match="ahead of the first launch"):
        used.register(0x1000, 4)
