"""Every call of CUDA's runtime that a step makes, failing: nothing is lost, the error says what.

A step that raises has changed nothing, and the next one is right.
"""

from __future__ import annotations

import re

import pytest
import torch

from stand_in import (
    ADAM,
    TABLES_AT_ONCE,
    Training,
    finish,
    fresh_device,
    native,
    new_device,
    same,
    tables,
    tensors,
)

UNKNOWN = 999  # cudaErrorUnknown

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)

# What a call is for, as the error says it.
PURPOSES = {
    "cudaGetDevice": "asking for the current device",
    "cudaSetDevice": "selecting the parameters' device",
    "cudaThreadExchangeStreamCaptureMode": "relaxing the mode of capture",
    "cudaStreamIsCapturing": "asking whether a stream captures",
    "cudaMalloc": r"allocating \d+ bytes for tables",
    "cudaHostAlloc": r"allocating \d+ bytes for tables",
    "cudaStreamCreateWithFlags": "creating a stream",
    "cudaMemsetAsync": "clearing counters",
    "cudaStreamSynchronize": "waiting for (cleared counters|a launch's table)",
    "cudaEventCreateWithFlags": "creating an event",
    "cudaMemcpyAsync": "copying a launch's table",
    "cudaLaunchKernel": r"launching \d+ blocks of (128|64) threads on device \d+",
    "cudaStreamGetCaptureInfo": "asking for the captured graph",
    "cudaUserObjectCreate": "leaving a launch's table to a graph",
    "cudaGraphRetainUserObject": "leaving a launch's table to a graph",
}
# Without these a step is none the worse.
HARMLESS = {"cudaEventQuery", "cudaEventRecord", "cudaStreamDestroy"}
# Every second one of these puts back what was before, which a step can do without, too.
IN_PAIRS = {"cudaSetDevice", "cudaThreadExchangeStreamCaptureMode"}


class Attempt:
    """A training at a certain point, and the step that is tried there."""

    def __init__(self, scenario):
        new_device()
        self.training = Training(ADAM, tensors(60), **OPTIONS[scenario], grad_dtype=torch.float64)
        self.is_captured = scenario.endswith("captured step")
        if scenario.endswith("later step"):
            self.training.step()
            self.training.synchronize()
            self.training.step()
        self.elsewhere = new_device()

    def run(self, failing):
        """The error of the step, if the call of this number fails, and the names of its calls."""
        training, error, graph = self.training, None, None
        native.set_device(training.device)
        training.upload_gradients(1)
        if self.is_captured:
            native.begin_capture(training.stream, "global")
        native.set_device(self.elsewhere)
        native.clear_calls()
        native.fail("", failing, UNKNOWN)
        try:
            training.queue_step()
        except RuntimeError as raised:
            error = str(raised)
        native.fail("", 0, 0)
        names = [name for name, _ in native.calls()]
        self.last_error = native.take_last_error()
        self.device_after = native.get_device()
        self.is_relaxed = native.restore_capture_mode()
        native.set_device(training.device)
        if self.is_captured:
            graph = native.end_capture(training.stream)
            self.replay(graph)
        return error, names

    def replay(self, graph):
        execution = native.graph_instantiate(graph)
        native.graph_launch(execution, self.training.stream)
        native.exec_destroy(execution)
        native.graph_destroy(graph)

    def finish(self, is_done, waits):
        """Goes on as if nothing had been; what is alive in the end."""
        if is_done:
            self.training.step_twin(1)
        if waits:
            finish()
            bits, expected = self.training.snapshot(), self.training.snapshot_of_twins()
            assert same(bits, expected), "the bits differ"
        for optimizer in (self.training.optimizer, self.training.twin):
            optimizer.param_groups[0]["lr"] *= 0.5  # so that no table is like that of the failure
        for _ in range(10):
            self.training.step()
        finish()
        assert same(self.training.snapshot(), self.training.snapshot_of_twins()), "later bits"
        return native.live(self.training.device)


CAPTURABLE = {"capturable": True}
CLIPPED = {"max_grad_norm": 1.0, "skip_nonfinite": True}
OPTIONS = {
    **dict.fromkeys(("first step", "later step", "captured step"), CAPTURABLE),
    **dict.fromkeys(("clipped first step", "clipped later step"), CLIPPED),
    "clipped captured step": {**CLIPPED, **CAPTURABLE},
}


def undisturbed(scenario, waits):
    attempt = Attempt(scenario)
    error, names = attempt.run(0)
    assert error is None
    return names, attempt.finish(True, waits)


def is_harmless(names, failing):
    name = names[failing]
    is_second = names[: failing + 1].count(name) % 2 == 0
    return name in HARMLESS or (name in IN_PAIRS and is_second)


def check(scenario, waits, names, failing, alive):
    name = names[failing]
    attempt = Attempt(scenario)
    error, _ = attempt.run(failing + 1)
    harmless = is_harmless(names, failing)
    if harmless:
        assert error is None, error
    else:
        assert error is not None, "no error"
        assert re.search(rf"CUDA: .* \(cudaErrorUnknown\) {PURPOSES[name]}$", error), error
    assert attempt.last_error == "cudaSuccess", "it leaves an error for others to find"
    not_put_back = name if harmless else None
    assert attempt.device_after == attempt.elsewhere or not_put_back == "cudaSetDevice"
    assert not attempt.is_relaxed or not_put_back == "cudaThreadExchangeStreamCaptureMode"
    found = attempt.finish(error is None, waits)
    found["streams"] -= name == "cudaStreamDestroy"
    assert found == alive, "something is left"


def problem_of(scenario, waits, names, failing, alive):
    """What goes wrong where a call fails, in words; or nothing."""
    try:
        check(scenario, waits, names, failing, alive)
    except (AssertionError, RuntimeError) as error:
        native.finish()
        native.take_violations()
        native.take_last_error()
        return f"call {failing}, {names[failing]}: {str(error).splitlines()[0]}"


@pytest.mark.parametrize("waits", [True, False], ids=["waiting", "going on"])
@pytest.mark.parametrize("scenario", OPTIONS)
def test_every_call_that_fails(scenario, waits):
    names, alive = undisturbed(scenario, waits)
    assert set(names) <= {*PURPOSES, *HARMLESS}
    found = [problem_of(scenario, waits, names, n, alive) for n in range(len(names))]
    problems = [each for each in found if each is not None]
    assert not problems, "\n".join(problems)


def step_without_a_record(training):
    """The step is done, and nobody can ask whether it is."""
    native.fail("cudaEventRecord", 1, UNKNOWN)
    training.step()


def capture_without_waiting(training):
    """Nothing is captured, and nobody knows whether the table is still being copied."""
    native.begin_capture(training.stream, "global")
    native.fail("cudaStreamSynchronize", 1, UNKNOWN)
    with pytest.raises(RuntimeError, match="waiting for a launch's table"):
        training.queue_step()
    native.graph_destroy(native.end_capture(training.stream))


@pytest.mark.parametrize("lose", [step_without_a_record, capture_without_waiting])
def test_a_table_that_may_be_in_use_for_ever_is_lost(lose):
    """Not only until all that was queued is done; and no other is lost with it."""
    training = Training(ADAM, tensors(60), capturable=True, grad_dtype=torch.float64)
    training.step()
    finish()
    for _ in range(TABLES_AT_ONCE):
        assert tables(training.device) == TABLES_AT_ONCE
        lose(training)
        finish()
    for _ in range(2 * TABLES_AT_ONCE):
        training.step()
        finish()
        assert tables(training.device) == 2 * TABLES_AT_ONCE
    training.assert_same()
