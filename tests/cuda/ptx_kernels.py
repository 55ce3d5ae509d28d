"""Small kernels in PTX whose results are known."""

from __future__ import annotations

from ptx import Kernel
from ptx_launches import kernel_of

ARRAYS = ".param .u64 in, .param .u64 out, .param .u32 n"
TWO_ARRAYS = ".param .u64 a, .param .u64 b, .param .u64 out, .param .u32 n"
LAST_BLOCK = ".param .u64 in, .param .u64 sums, .param .u64 out, .param .u64 arrivals"

# Of a kernel with the parameters `in` and `out`, and the thread's index in its block.
POINTERS = "ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r1, %tid.x;"

# The thread's index in the grid, and where its element of 4 bytes is.
INDEX = """
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
  mad.lo.s32 %r4, %r1, %r2, %r3;
  mul.wide.u32 %rd9, %r4, 4;
"""


def vector_add(compare: str = "ge") -> Kernel:
    """out = a + b; the threads behind the end leave."""
    return kernel_of(
        f"""{INDEX}
  ld.param.u32 %r5, [n];
  setp.{compare}.u32 %p1, %r4, %r5;
  @%p1 bra DONE;
  ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [b]; ld.param.u64 %rd3, [out];
  add.s64 %rd1, %rd1, %rd9; add.s64 %rd2, %rd2, %rd9; add.s64 %rd3, %rd3, %rd9;
  ld.global.f32 %f1, [%rd1]; ld.global.nc.f32 %f2, [%rd2];
  add.rn.f32 %f3, %f1, %f2;
  st.global.f32 [%rd3], %f3;
DONE:""",
        TWO_ARRAYS,
    )


# Sums %r9 of all 64 threads in shared memory; the sum is in %r10 of all threads.
SUM_OF_BLOCK = """
  mov.u32 %r6, sums; shl.b32 %r7, %r3, 2; add.s32 %r8, %r6, %r7;
  st.shared.u32 [%r8], %r9;
  mov.u32 %r11, 32;
HALVE:
  bar.sync 0;
  setp.ge.u32 %p2, %r3, %r11;
  @%p2 bra SKIP;
  shl.b32 %r12, %r11, 2; add.s32 %r13, %r8, %r12;
  ld.shared.u32 %r14, [%r8]; ld.shared.u32 %r15, [%r13];
  add.s32 %r14, %r14, %r15;
  st.shared.u32 [%r8], %r14;
SKIP:
  shr.u32 %r11, %r11, 1;
  setp.ne.s32 %p3, %r11, 0;
  @%p3 bra HALVE;
  bar.sync 0;
  ld.shared.u32 %r10, [sums];
"""


def block_sum(without: str = "", instead: str = "") -> Kernel:
    """out[block] = the sum of the block's 64 elements, halved in shared memory."""
    return kernel_of(
        f"""{INDEX}
  .shared .align 4 .b8 sums[256];
  ld.param.u64 %rd1, [in]; add.s64 %rd1, %rd1, %rd9; ld.global.u32 %r9, [%rd1];
  {SUM_OF_BLOCK.replace(without, instead, 1)}
  setp.ne.s32 %p4, %r3, 0;
  @%p4 bra DONE;
  ld.param.u64 %rd2, [out]; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd2, %rd2, %rd3;
  st.global.u32 [%rd2], %r10;
DONE:"""
    )


def histogram(add: str = "red.global.add.u32 [%rd4], 1;") -> Kernel:
    """out[value] counts the elements of that value."""
    return kernel_of(
        f"""{INDEX}
  ld.param.u64 %rd1, [in]; add.s64 %rd1, %rd1, %rd9; ld.global.u32 %r5, [%rd1];
  ld.param.u64 %rd2, [out]; mul.wide.u32 %rd3, %r5, 4; add.s64 %rd4, %rd2, %rd3;
  {add}"""
    )


def collatz() -> Kernel:
    """out[i] = how many steps it takes from in[i] to 1."""
    return kernel_of(
        f"""{INDEX}
  ld.param.u64 %rd1, [in]; add.s64 %rd1, %rd1, %rd9; ld.global.u32 %r5, [%rd1];
  mov.u32 %r6, 0;
NEXT:
  setp.eq.u32 %p1, %r5, 1;
  @%p1 bra DONE;
  add.s32 %r6, %r6, 1;
  and.b32 %r7, %r5, 1;
  setp.eq.u32 %p2, %r7, 0;
  @%p2 shr.u32 %r5, %r5, 1;
  @!%p2 mad.lo.u32 %r5, %r5, 3, 1;
  bra.uni NEXT;
DONE:
  ld.param.u64 %rd2, [out]; add.s64 %rd2, %rd2, %rd9; st.global.u32 [%rd2], %r6;"""
    )


def last_block_sum(
    release: str = "membar.gl;",
    arrive: str = "atom.global.add.u32 %r9, [%rd6], 1;",
    acquire: str = "membar.gl;",
) -> Kernel:
    """The sums of all blocks, which the last block to arrive adds up."""
    return kernel_of(
        f"""{INDEX}
  .shared .align 4 .b8 sums_in_block[256];
  .shared .align 4 .u32 is_last;
  ld.param.u64 %rd1, [in]; add.s64 %rd1, %rd1, %rd9; ld.global.u32 %r9, [%rd1];
  {SUM_OF_BLOCK.replace("sums", "sums_in_block")}
  setp.ne.s32 %p4, %r3, 0;
  @%p4 bra WAIT;
  ld.param.u64 %rd2, [sums]; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd2, %rd3;
  st.global.u32 [%rd4], %r10;
  {release}
  ld.param.u64 %rd6, [arrivals];
  {arrive}
  {acquire}
  mov.u32 %r5, %nctaid.x;
  add.s32 %r9, %r9, 1;
  setp.eq.s32 %p5, %r9, %r5;
  selp.u32 %r6, 1, 0, %p5;
  st.shared.u32 [is_last], %r6;
WAIT:
  bar.sync 0;
  ld.shared.u32 %r6, [is_last];
  setp.eq.s32 %p6, %r6, 0;
  @%p6 bra DONE;
  mov.u32 %r5, %nctaid.x;
  setp.ge.u32 %p7, %r3, %r5;
  @%p7 bra DONE;
  ld.param.u64 %rd2, [sums]; mul.wide.u32 %rd3, %r3, 4; add.s64 %rd4, %rd2, %rd3;
  ld.global.u32 %r7, [%rd4];
  ld.param.u64 %rd5, [out];
  red.global.add.u32 [%rd5], %r7;
  ld.param.u64 %rd6, [arrivals];
  @!%p4 st.global.u32 [%rd6], 0;
DONE:""",
        LAST_BLOCK,
    )
