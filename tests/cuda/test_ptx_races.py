"""The interpreter of PTX: races that are planted, and what orders accesses instead."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import Memory
from ptx_kernels import POINTERS, histogram, last_block_sum
from ptx_launches import array, fault_of, found, kernel_of, launch, zeros

# ---- races in global memory ----
EACH_ITS_OWN = "mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3;"
NEIGHBOUR = """xor.b32 %r2, %r1, 1; mul.wide.u32 %rd5, %r2, 4; add.s64 %rd6, %rd1, %rd5;"""
RACES = {
    "write, write": ("st.global.u32 [%rd1], %r1;", "write"),
    "write, read": ("st.global.u32 [%rd4], %r1; {barrier} ld.global.u32 %r3, [%rd6];", "write"),
    "read, write": ("ld.global.u32 %r3, [%rd4]; {barrier} st.global.u32 [%rd6], %r1;", "read"),
    "write, write of a byte of it": (
        "st.global.u32 [%rd4], %r1; {barrier} st.global.u8 [%rd6+3], %r1;",
        "write",
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_race_in_a_block(race):
    body, other = RACES[race]
    values = zeros(32, np.uint32)
    text = POINTERS + EACH_ITS_OWN + NEIGHBOUR + body
    fault = fault_of(kernel_of(text.format(barrier="")), values, 0, threads=32)
    assert found(fault, f"race with the {other} of block 0, thread", "of 'in'")
    if "barrier" in body:
        launch(kernel_of(text.format(barrier="bar.sync 0;")), values, 0, threads=32)


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("batch", [1, 2])
def test_race_between_blocks(race, batch):
    """A barrier of a block orders nothing between blocks."""
    body, _ = RACES[race]
    text = POINTERS + "mov.u32 %r1, %ctaid.x;" + EACH_ITS_OWN + NEIGHBOUR + body
    kernel = kernel_of(text.format(barrier="bar.sync 0;"))
    fault = fault_of(kernel, zeros(2, np.uint32), 0, blocks=2, batch=batch)
    assert found(
        fault, "race with the (read|write) of block [01], thread 0", "; block [01], thread 0"
    )


def test_bytes_side_by_side_are_no_race():
    values = zeros(64, np.uint8)
    kernel = kernel_of(
        POINTERS + "cvt.u64.u32 %rd3, %r1; add.s64 %rd4, %rd1, %rd3; st.global.u8 [%rd4], %r1;"
    )
    launch(kernel, values, 0, threads=64)
    assert values.tolist() == list(range(64))


def test_many_readers_and_one_writer():
    """Every reader has to come before the write, not only the last."""
    body = """setp.eq.u32 %p1, %r1, 5; setp.eq.u32 %p2, %r1, 6;
      @!%p2 ld.global.u32 %r3, [%rd1]; {barrier} @%p1 st.global.u32 [%rd1], %r1;"""
    values = zeros(1, np.uint32)
    fault = fault_of(kernel_of(POINTERS + body.format(barrier="")), values, 0, threads=32)
    assert found(fault, "race with the read of block 0, thread", "block 0, thread 5")
    launch(kernel_of(POINTERS + body.format(barrier="bar.sync 0;")), values, 0, threads=32)


def test_readers_of_other_blocks_and_a_writer():
    body = """mov.u32 %r2, %ctaid.x; setp.eq.u32 %p1, %r2, 3; @!%p1 ld.global.u32 %r3, [%rd1];
      @%p1 st.global.u32 [%rd1], %r2;"""
    for batch in (1, 4):
        fault = fault_of(kernel_of(POINTERS + body), zeros(1), 0, blocks=4, batch=batch)
        assert found(fault, "race with the read of block [0-2]", "block 3, thread 0")


def test_launches_do_not_race_with_each_other():
    values, memory = zeros(32, np.uint32), Memory()
    memory.register(values.ctypes.data, 128)
    write = kernel_of(POINTERS + EACH_ITS_OWN + "st.global.u32 [%rd4], %r1;")
    read = kernel_of(POINTERS + EACH_ITS_OWN + NEIGHBOUR + "ld.global.u32 %r3, [%rd6];")
    count = kernel_of(POINTERS + EACH_ITS_OWN + NEIGHBOUR + "red.global.add.u32 [%rd6], 1;")
    read_only = kernel_of(POINTERS + "ld.global.nc.u32 %r3, [%rd1];")
    for kernel in (write, read, write, count, read, write, read_only, write):
        launch(kernel, values, 0, threads=32, memory=memory)


@pytest.mark.parametrize("is_read_first", [True, False])
def test_read_only_load_of_what_the_launch_writes(is_read_first):
    """Even by the same thread, and even where a barrier would order a plain load."""
    statements = ["ld.global.nc.u32 %r3, [%rd4];", "bar.sync 0;", "st.global.u32 [%rd4], %r1;"]
    body = POINTERS + EACH_ITS_OWN + "".join(statements if is_read_first else statements[::-1])
    fault = fault_of(kernel_of(body), zeros(32, np.uint32), 0, threads=32)
    assert found(fault, "read-only", "ld.global.nc" if not is_read_first else "st.global")
    launch(kernel_of(body.replace(".nc", "")), zeros(32, np.uint32), 0, threads=32)


# ---- atomics ----
def test_a_plain_addition_instead_of_an_atomic():
    plain = "ld.global.u32 %r6, [%rd4]; add.s32 %r6, %r6, 1; st.global.u32 [%rd4], %r6;"
    values, out = zeros(64, np.uint32), zeros(1, np.uint32)
    assert found(fault_of(histogram(plain), values, out, threads=64), "race with the", "of 'out'")


@pytest.mark.parametrize("plain", ["ld.global.u32 %r3, [%rd1];", "st.global.u32 [%rd1], %r1;"])
@pytest.mark.parametrize("is_first", [True, False])
def test_atomics_race_with_other_accesses(plain, is_first):
    """Thread 3 accesses it plainly, the others by atomics."""
    statements = ["@!%p1 red.global.add.u32 [%rd1], 1;", f"@%p1 {plain}"]
    statements = statements[::-1] if is_first else statements
    body = POINTERS + "setp.eq.u32 %p1, %r1, 3;" + "{barrier}".join(statements)
    values = zeros(1, np.uint32)
    assert found(fault_of(kernel_of(body.format(barrier="")), values, 0, threads=8), "race with")
    launch(kernel_of(body.format(barrier="bar.sync 0;")), values, 0, threads=8)


# ---- between blocks, by fences ----
WRONG_ARRIVALS = {
    "no fence ahead": {"release": ""},
    "no fence behind": {"acquire": ""},
    "no fence at all": {"release": "", "acquire": ""},
    "a fence too early": {"release": "membar.gl; st.global.u32 [%rd4], %r10;"},
    "both fences behind": {"release": "", "acquire": "membar.gl; membar.gl;"},
    "both fences ahead": {"release": "membar.gl; membar.gl;", "acquire": ""},
    "only released": {
        "release": "",
        "arrive": "atom.release.gpu.global.add.u32 %r9, [%rd6], 1;",
        "acquire": "",
    },
    "only acquired": {
        "release": "",
        "arrive": "atom.acquire.gpu.global.add.u32 %r9, [%rd6], 1;",
    },
    "relaxed": {
        "release": "",
        "arrive": "atom.relaxed.gpu.global.add.u32 %r9, [%rd6], 1;",
        "acquire": "",
    },
    # A reduction acquires nothing, whatever tells the block that it is the last.
    "a reduction": {"arrive": "red.global.add.u32 [%rd6], 1; mov.u32 %r9, %ctaid.x;"},
}


@pytest.mark.parametrize("arrival", WRONG_ARRIVALS)
@pytest.mark.parametrize("batch", [1, 3, 32])
def test_a_missing_fence(arrival, batch):
    """The last block reads what the others wrote: both sides need their fence."""
    kernel = last_block_sum(**WRONG_ARRIVALS[arrival])
    arrays = [array(np.arange(320), np.uint32), *(zeros(n, np.uint32) for n in (5, 1, 1))]
    fault = fault_of(kernel, *arrays, blocks=5, threads=64, batch=batch)
    assert found(fault, "race with the write of block", "ld.global.u32 %r7", "of 'sums'")


def test_what_is_released_later_is_not_acquired():
    """Block 0 acquires ahead of block 1's release, and reads behind it."""
    kernel = kernel_of(
        """ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %ctaid.x;
        setp.eq.u32 %p1, %r1, 1;
        @!%p1 atom.acq_rel.gpu.global.add.u32 %r2, [%rd2], 1;
        @%p1 st.global.u32 [%rd1], 5;
        @%p1 atom.acq_rel.gpu.global.add.u32 %r2, [%rd2], 1;
        @!%p1 ld.global.u32 %r3, [%rd1];"""
    )
    arrays = zeros(1, np.uint32), zeros(1, np.uint32)
    fault = fault_of(kernel, *arrays, blocks=2)
    assert found(fault, "race with the write of block 1", "; block 0, thread 0", "ld.global")
    fault = fault_of(kernel, *arrays, blocks=2, batch=1)
    assert found(fault, "race with the read of block 0", "; block 1, thread 0", "st.global")
    launch(kernel, *arrays, blocks=2, order=[1, 0], batch=1)


@pytest.mark.parametrize("acquire", ["membar.gl;", ""])
def test_a_read_ahead_of_the_arrival_and_a_write_behind_it(acquire):
    """As blocks read a step count that the last of them counts on."""
    kernel = kernel_of(
        POINTERS
        + f"""setp.ne.u32 %p1, %r1, 0;
        @%p1 bra WAIT;
        ld.global.u32 %r2, [%rd1];
        membar.gl;
        atom.global.add.u32 %r3, [%rd2], 1;
        {acquire}
        add.s32 %r3, %r3, 1; mov.u32 %r4, %nctaid.x; setp.eq.u32 %p2, %r3, %r4;
        selp.u32 %r5, 1, 0, %p2; st.shared.u32 [is_last], %r5;
WAIT:
        bar.sync 0;
        .shared .align 4 .u32 is_last;
        ld.shared.u32 %r5, [is_last]; setp.ne.u32 %p3, %r5, 1; @%p3 ret;
        setp.eq.u32 %p4, %r1, 9; @%p4 st.global.u32 [%rd1], %r1;
        setp.eq.u32 %p5, %r1, 0; @%p5 st.global.u32 [%rd2], 0;"""
    )
    for batch in (1, 3, 8):
        counts, arrivals = zeros(1, np.uint32), zeros(1, np.uint32)
        options = {"blocks": 8, "threads": 32, "batch": batch}
        if acquire:
            launch(kernel, counts, arrivals, **options)
            assert (counts[0], arrivals[0]) == (9, 0)
        else:
            fault = fault_of(kernel, counts, arrivals, **options)
            assert found(fault, "race with the read of block", "thread 9", "of 'in'")
