"""Clipped and skipped steps of the CUDA engine on a stand-in for CUDA's runtime.

What is measured is decided in the device's memory, and as late as it may be; results are compared
as integers with those of the CPU engine.
"""

from __future__ import annotations

import math

import pytest
import torch

import fusedopt
from fusedopt import _native, reference
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from helpers import content
from stand_in import (
    ADAM,
    DeviceMemory,
    Training,
    each_policy,
    finish,
    fresh_device,
    native,
    new_device,
    readable,
    steps_on,
    tensors,
    view_of,
)

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)

TABLES = {
    "small": ({"count": 3, "size": 70_000}, 60),
    "large": ({"count": 200}, 60),
    "overflow": ({"count": 1200}, 20),
}


class Norms:
    """What steps have found on either side: that of the device is read in the end."""

    def __init__(self, training):
        self.training, self.found = training, []

    def note(self):
        ours, theirs = self.training.optimizer, self.training.twin
        self.found.append((ours.grad_norm, ours._measurement._on_devices[0], theirs.grad_norm,
                           theirs.skipped))  # fmt: skip

    def assert_same(self):
        for norm, decision, expected, is_skipped in self.found:
            assert content(readable(norm)) == content(expected)
            assert (readable(decision)[2] != 0) == is_skipped


@each_policy
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("table", TABLES)
def test_steps_in_flight(table, capturable, policy, seed):
    """Some are skipped, and counts are the device's then."""
    values, steps = TABLES[table]
    native.schedule(policy, seed)
    training = Training(
        ADAM, tensors(**values), capturable=capturable, weight_decay=0.1, max_grad_norm=1.0,
        skip_nonfinite=True,
    )  # fmt: skip
    (infinite,) = view_of(training.pinned[3], torch.empty(1))
    view_of(training.pinned[3], torch.empty(1))[0] = math.inf
    assert infinite.isinf()
    norms = Norms(training)
    for n in range(steps):
        training.step()
        norms.note()
        if n == steps // 2:
            training.synchronize()
    finish()
    training.assert_same()
    norms.assert_same()
    assert {bool(skipped) for *_, skipped in norms.found} == {False, True}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_optimizer_dtype_and_option(row):
    native.schedule("random", 7)
    for dtype in DTYPES:
        for options in row.options:
            values = tensors(2, 3000, dtype) + tensors(3, 5, dtype, seed=1)
            training = Training(row, values, max_grad_norm=1.0, **options)
            norms = Norms(training)
            for _ in range(3):
                training.step()
                norms.note()
            finish()
            training.assert_same()
            norms.assert_same()


def test_a_step_calls_no_more_than_it_needs():
    """Nothing is allocated and nothing waited for; one launch measures, and one updates."""
    training = Training(ADAM, tensors(60), max_grad_norm=1.0)
    training.step()
    training.synchronize()
    native.clear_calls()
    training.queue_step()
    assert [name for name, _ in native.calls()] == [
        "cudaGetDevice", "cudaStreamIsCapturing", "cudaGetDevice",
        "cudaGetDevice", "cudaThreadExchangeStreamCaptureMode", "cudaEventQuery",
        "cudaThreadExchangeStreamCaptureMode", "cudaLaunchKernel", "cudaEventRecord",
        "cudaGetDevice", "cudaLaunchKernel",
    ]  # fmt: skip


@each_policy
@pytest.mark.parametrize("mode", ["global", "thread", "relaxed"])
def test_replays(mode, policy, seed):
    """Each finds its own norm; capturing finds none."""
    native.schedule(policy, seed)
    training = Training(
        ADAM, tensors(150), capturable=True, grad_dtype=torch.float64, max_grad_norm=1.0,
        skip_nonfinite=True,
    )  # fmt: skip
    view_of(training.pinned[3], torch.empty(1, dtype=torch.float64))[0] = math.nan
    native.begin_capture(training.stream, mode)
    training.queue_step()
    graph = native.end_capture(training.stream)
    norm = training.optimizer.grad_norm
    execution = native.graph_instantiate(graph)
    for n in range(12):
        training.upload_gradients(n % 5)
        native.graph_launch(execution, training.stream)
        training.step_twin(n % 5)
        if n % 3 == 0:
            training.synchronize()
            assert content(readable(norm)) == content(training.twin.grad_norm)
    finish()
    training.assert_same()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


def sums_on_device(values, numbers, stream=0):
    memory = DeviceMemory(8 * sum(value.numel() for value in values) + 64 * len(values))
    there = [memory.put(value) for value in values]
    with steps_on(native.get_device(), stream):
        return _native.sums_of_squares(there, numbers)


@each_policy
@pytest.mark.parametrize("count", [3, 200, 1200])
def test_sums_for_the_host(count, policy, seed):
    """It waits for them; several of them, behind a table or not, and again with the memory."""
    native.schedule(policy, seed)
    for more in range(4):
        values = tensors(count, 50, seed=more) + tensors(2, 70_000, torch.bfloat16)
        numbers = [n % (3 + more) for n in range(len(values))]
        expected = _native.sums_of_squares(values, numbers)
        assert sums_on_device(values, numbers) == expected
    finish()


def test_tensors_on_two_devices():
    """What would be a GPU and the CPU: two lists, of which the host adds the sums."""
    values = tensors(3, 50)
    norm = reference.total_norm(value.numpy() for value in values)
    new_device()
    found = sums_on_device(values, [0, 0, 0])
    assert _native.norm_of_squares(found[0]) == norm


def test_the_host_cannot_add_sums_of_a_graph():
    stream = native.stream_create(False)
    values = tensors(2, 50)
    memory = DeviceMemory(1024)
    there = [memory.put(value) for value in values]
    native.begin_capture(stream, "global")
    with steps_on(native.get_device(), stream), pytest.raises(RuntimeError, match="cannot capture"):
        _native.sums_of_squares(there, [0, 1])
    native.graph_destroy(native.end_capture(stream))


def test_functions_in_place_of_torchs():
    """The norm is read when it is there."""
    values = tensors(3, 50)
    memory = DeviceMemory(1 << 12)
    there = [memory.put(value) for value in values]
    decision = memory.put(torch.full((3,), math.nan, dtype=torch.float64))
    with steps_on(native.get_device(), 0):
        found = _native.decide_on_device(there, 1.0, lambda like: decision)
    assert found is decision
    finish()
    norm = reference.total_norm(value.numpy() for value in values)
    assert readable(decision).tolist() == [norm, reference.clip_factor(1.0, norm), 0.0]
    assert fusedopt.get_total_norm(values).item() == torch.tensor(norm).float()
