"""The interpreter of PTX: whole kernels whose results are known."""

from __future__ import annotations

import numpy as np
import pytest

from ptx import Module
from ptx_kernels import block_sum, collatz, histogram, last_block_sum, vector_add
from ptx_launches import HEAD, array, kernel_of, launch, zeros

BATCHES = (1, 3, 32)  # blocks that run side by side


def collatz_steps(n: int) -> int:
    steps = 0
    while n != 1:
        n = 3 * n + 1 if n % 2 else n // 2
        steps += 1
    return steps


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", [1, 127, 128, 1000])
def test_vector_add_with_a_tail(n, batch):
    a, b = array(np.arange(n), np.float32), array(np.full(n, 0.5), np.float32)
    out = zeros(n, np.float32)
    blocks = -(-n // 128)
    statistics = launch(vector_add(), a, b, out, n, blocks=blocks, threads=128, batch=batch)
    assert out.tolist() == (a + b).tolist()
    assert (statistics.blocks, statistics.bytes_loaded, statistics.bytes_stored) == (
        blocks,
        8 * n,
        4 * n,
    )


@pytest.mark.parametrize("batch", BATCHES)
def test_sum_of_a_block_in_shared_memory(batch):
    values, out = array(np.arange(640) ** 2, np.uint32), zeros(10, np.uint32)
    launch(block_sum(), values, out, blocks=10, threads=64, batch=batch)
    assert out.tolist() == values.reshape(10, 64).sum(axis=1).tolist()


@pytest.mark.parametrize("batch", BATCHES)
def test_histogram_with_atomics(batch):
    values = array(np.random.default_rng(0).integers(0, 7, 320), np.uint32)
    out = zeros(7, np.uint32)
    launch(histogram(), values, out, blocks=5, threads=64, batch=batch)
    assert out.tolist() == np.bincount(values, minlength=7).tolist()


def test_a_loop_that_every_thread_leaves_at_its_own_time():
    values, out = array(np.arange(1, 129), np.uint32), zeros(128, np.uint32)
    launch(collatz(), values, out, blocks=2, threads=64)
    assert out.tolist() == [collatz_steps(n) for n in range(1, 129)]


ARRIVALS = {
    "fences": {},
    "fence.acq_rel": {"release": "fence.acq_rel.gpu;", "acquire": "fence.acq_rel.gpu;"},
    "fence.sc": {"release": "fence.sc.gpu;", "acquire": "fence.sc.sys;"},
    "an atomic that does both": {
        "release": "",
        "arrive": "atom.acq_rel.gpu.global.add.u32 %r9, [%rd6], 1;",
        "acquire": "",
    },
    "a fence and an atomic": {
        "release": "membar.sys;",
        "arrive": "atom.acquire.gpu.global.add.u32 %r9, [%rd6], 1;",
        "acquire": "",
    },
    "an atomic and a fence": {
        "release": "",
        "arrive": "atom.release.gpu.global.add.u32 %r9, [%rd6], 1;",
    },
}


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("batch", BATCHES)
def test_the_last_block_adds_up(arrival, batch):
    kernel = last_block_sum(**ARRIVALS[arrival])
    values = array(np.arange(320), np.uint32)
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        sums, out, arrivals = zeros(5, np.uint32), zeros(1, np.uint32), zeros(1, np.uint32)
        launch(kernel, values, sums, out, arrivals, blocks=5, threads=64, order=order, batch=batch)
        assert out[0] == values.sum()
        assert arrivals[0] == 0


def test_blocks_run_in_the_order_given():
    kernel = kernel_of(
        """mov.u32 %r1, %ctaid.x; ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [in];
        atom.global.add.u32 %r2, [%rd2], 1;
        mul.wide.u32 %rd3, %r2, 4; add.s64 %rd1, %rd1, %rd3; st.global.u32 [%rd1], %r1;"""
    )
    for order in ([2, 0, 3, 1], [1, 3]):
        counter, out = zeros(1, np.uint32), array([9] * 4, np.uint32)
        launch(kernel, counter, out, blocks=4, order=order, batch=1)
        assert out.tolist() == (order + [9] * 4)[:4]
    with pytest.raises(ValueError, match="once"):
        launch(kernel, zeros(1, np.uint32), zeros(4, np.uint32), blocks=4, order=[1, 1])


def test_a_seed_decides_which_block_is_first():
    """Of blocks that run side by side."""
    kernel = kernel_of(
        """mov.u32 %r1, %ctaid.x; ld.param.u64 %rd1, [out]; ld.param.u64 %rd2, [in];
        atom.global.add.u32 %r2, [%rd2], 1;
        mul.wide.u32 %rd3, %r1, 4; add.s64 %rd1, %rd1, %rd3; st.global.u32 [%rd1], %r2;"""
    )
    seen = set()
    for seed in (1, 2, 2):
        counter, out = zeros(1, np.uint32), zeros(8, np.uint32)
        launch(kernel, counter, out, blocks=8, seed=seed)
        seen.add(tuple(out.tolist()))
    assert len(seen) == 2


def test_f32_arithmetic_makes_one_nan_and_moves_keep_any():
    """Also where the NaN goes through more arithmetic, a branch or a loop first."""
    kernel = kernel_of(
        """ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out];
        ld.global.f32 %f1, [%rd1]; mov.f32 %f2, %f1; st.global.f32 [%rd2], %f2;
        add.rn.f32 %f3, %f1, 0f3F800000; mul.rn.f32 %f4, %f3, %f3; st.global.f32 [%rd2+4], %f4;
        setp.nan.f32 %p1, %f3, %f3; selp.f32 %f5, %f1, %f3, %p1; st.global.f32 [%rd2+8], %f5;
        sub.rn.f32 %f6, %f1, %f1;
        @%p1 bra BEHIND;
        mov.f32 %f6, 0f00000000;
BEHIND:
        st.global.f32 [%rd2+12], %f6; mov.b32 %r1, %f6; st.global.u32 [%rd2+16], %r1;"""
    )
    other = 0xFFC12345
    given, out = array([other], np.uint32), zeros(5, np.uint32)
    launch(kernel, given, out)
    nan = 0x7FFFFFFF
    assert [hex(x) for x in out] == [hex(x) for x in (other, nan, other, nan, nan)]


def test_what_a_kernel_declares():
    text = f"""{HEAD}
.visible .entry first(.param .u8 a, .param .align 16 .b8 b[20], .param .u64 c)
.maxntid 32, 2, 1
.minnctapersm 4
{{
  // a comment with ret; and a brace {{
  ret;
}}
.entry second() {{ ret; }}
"""
    module = Module(text)
    first, second = module.kernels["first"], module.kernels["second"]
    assert [v.offset for v in first.parameters.values()] == [0, 16, 40]
    assert (first.parameter_size, first.parameter_align, first.required_threads) == (48, 16, 64)
    assert (second.parameter_size, second.parameter_align, second.required_threads) == (0, 1, None)
    assert (first.text[:13], first.text[-1]) == (".entry first(", "}")
    with pytest.raises(ValueError, match="65 threads in a block of 64"):
        launch(first, 0, bytes(20), 0, threads=65)


def test_coverage_names_what_has_not_run():
    kernel = vector_add()
    assert (kernel.coverage().blocks_run, kernel.coverage().blocks) == (0, 3)
    nothing = zeros(1, np.float32)
    launch(kernel, nothing, nothing, nothing, 0, threads=4)
    coverage = kernel.coverage()
    assert (coverage.blocks_run, coverage.blocks) == (2, 3)
    opcodes = [instruction.opcode for instruction in coverage.unexecuted]
    assert opcodes[:2] == ["ld.param.u64", "ld.param.u64"]
    assert opcodes[-1] == "st.global.f32"
    launch(kernel, array([1], np.float32), array([2], np.float32), nothing, 1, threads=4)
    assert kernel.coverage().unexecuted == []
