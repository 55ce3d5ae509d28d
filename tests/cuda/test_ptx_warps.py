"""The interpreter of PTX: what the 32 threads of a warp do together."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import UnknownInstruction
from ptx_kernels import POINTERS
from ptx_launches import array, fault_of, found, kernel_of, launch, zeros

OWN_ELEMENT = "mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;"
THROUGH_A_STAGE = """
  .shared .align 4 .b8 stage[512];
  mov.u32 %r6, stage; shl.b32 %r7, %r1, 2; add.s32 %r8, %r6, %r7;
  ld.global.u32 %r9, [%rd4];
  st.shared.u32 [%r8], %r9;
  {barrier}
  xor.b32 %r7, %r7, {distance}; add.s32 %r8, %r6, %r7;
  ld.shared.u32 %r9, [%r8];
  st.global.u32 [%rd5], %r9;
"""
WARP_BARRIER = "bar.warp.sync 0xffffffff;"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("s32", [[7, 2**31 - 1], [-3, -3]]), ("u32", [[2**32 - 3, 2**31 - 1], [2**32 - 3] * 2])],
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_largest_of_a_warp(kind, expected, batch):
    """Of each warp of each block; negative numbers are large ones without a sign."""
    values = np.full((2, 2, 32), -5, np.int64)
    values[0, 0, [3, 17]] = 7, -3
    values[0, 1] = np.arange(32)
    values[0, 1, 31] = 2**31 - 1
    values[1, :, 9] = -3
    body = f"""mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.s32 %r1, %r2, %r3, %r1;
      {OWN_ELEMENT} ld.global.u32 %r4, [%rd4];
      redux.sync.max.{kind} %r5, %r4, 0xffffffff; st.global.u32 [%rd5], %r5;"""
    if kind == "u32":
        values[0, 1] = np.abs(values[0, 1])
    given, out = array(values.ravel() & 0xFFFFFFFF, np.uint32), zeros(128, np.uint32)
    launch(kernel_of(POINTERS + body), given, out, blocks=2, threads=64, batch=batch)
    by_warp = out.view(np.int32 if kind == "s32" else np.uint32).reshape(2, 2, 32)
    assert (by_warp == np.array(expected)[:, :, None]).all()


def test_threads_that_come_by_different_ways_meet_there():
    """Odd threads make a detour, of a length that differs from warp to warp."""
    body = f"""{OWN_ELEMENT} and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; mov.u32 %r3, %r1;
      shr.u32 %r4, %r1, 5;
      @%p1 bra MEET;
LOOP:
      add.s32 %r3, %r3, 100; setp.eq.u32 %p2, %r4, 0; @%p2 bra MEET;
      sub.s32 %r4, %r4, 1; bra.uni LOOP;
MEET:
      redux.sync.max.u32 %r5, %r3, -1; st.global.u32 [%rd5], %r5;"""
    out = zeros(96, np.uint32)
    launch(kernel_of(POINTERS + body), out, out, threads=96)
    assert out.reshape(3, 32).T.tolist() == [[131, 263, 395]] * 32


def test_a_thread_that_is_missing():
    body = f"""setp.eq.u32 %p1, %r1, 40; @%p1 bra DONE;
      redux.sync.max.u32 %r5, %r1, -1; {WARP_BARRIER}
DONE:"""
    for barrier in ("", "redux.sync.max.u32 %r5, %r1, -1;"):
        kernel = kernel_of(POINTERS + body.replace(barrier, "", 1))
        fault = fault_of(kernel, 0, 0, threads=64)
        assert found(fault, "a barrier that not all threads of the warp reach", "thread (3[2-9]|4)")


def test_what_a_barrier_of_a_warp_orders():
    """Its own threads' accesses, and no others'."""
    values = array(np.arange(64), np.uint32)
    for distance, barrier, partner in (
        (4, WARP_BARRIER, 1),
        (4, "bar.sync 0;", 1),
        (128, "bar.sync 0;", 32),
    ):
        body = THROUGH_A_STAGE.format(barrier=barrier, distance=distance)
        out = zeros(64, np.uint32)
        launch(kernel_of(POINTERS + OWN_ELEMENT + body), values, out, threads=64)
        assert out.tolist() == [i ^ partner for i in range(64)]
    for distance, barrier in (
        (4, ""),
        (4, "redux.sync.max.u32 %r5, %r1, -1;"),
        (128, WARP_BARRIER),
    ):
        body = THROUGH_A_STAGE.format(barrier=barrier, distance=distance)
        kernel = kernel_of(POINTERS + OWN_ELEMENT + body)
        fault = fault_of(kernel, values, zeros(64, np.uint32), threads=64)
        assert found(fault, "race with the write of block 0, thread", "of 'stage'")


def test_a_write_behind_the_reads_of_a_warp():
    body = """ld.global.u32 %r3, [%rd1]; {barrier}
      setp.eq.u32 %p1, %r1, 5; @%p1 st.global.u32 [%rd1], %r1;"""
    values = zeros(1, np.uint32)
    launch(kernel_of(POINTERS + body.format(barrier=WARP_BARRIER)), values, 0, threads=32)
    fault = fault_of(kernel_of(POINTERS + body.format(barrier="")), values, 0, threads=32)
    assert found(fault, "race with the read of block 0, thread", "block 0, thread 5")
    # The other warp has read, too, and nothing orders that.
    kernel = kernel_of(POINTERS + body.format(barrier=WARP_BARRIER))
    assert found(fault_of(kernel, values, 0, threads=64), "race with the read of block 0")


@pytest.mark.parametrize("statement", ["bar.warp.sync 15;", "redux.sync.max.s32 %r1, %r2, 15;"])
def test_a_part_of_a_warp_is_refused(statement):
    with pytest.raises(UnknownInstruction):
        launch(kernel_of(f"mov.u32 %r2, 0; {statement}"), 0, 0, threads=32)


@pytest.mark.parametrize("statement", ["bar.warp.sync %r3;", "redux.sync.max.s32 %r1, %r2, %r3;"])
def test_a_mask_in_a_register(statement):
    body = f"mov.u32 %r2, 0; mov.u32 %r3, {{mask}}; {statement}"
    launch(kernel_of(body.format(mask=-1)), 0, 0, threads=32)
    fault = fault_of(kernel_of(body.format(mask=15)), 0, 0, threads=32)
    assert found(fault, "a part of a warp")
