"""Graphs of steps on a stand-in for CUDA's runtime: captured, replayed, destroyed.

A graph that is destroyed may still have launches queued, and keeps its table until they are done.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from fusedopt.checking.rows import ROWS
from stand_in import (
    ADAM,
    TABLES_AT_ONCE,
    Training,
    each_policy,
    finish,
    fresh_device,
    native,
    same,
    tensors,
)

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)


def capturable(count=60, **options):
    """A training whose tables overflow."""
    return Training(ADAM, tensors(count), capturable=True, grad_dtype=torch.float64, **options)


def capture(training, mode="global", steps=1):
    native.begin_capture(training.stream, mode)
    for _ in range(steps):
        training.queue_step()
    return native.end_capture(training.stream)


def replay(training, execution, number):
    training.upload_gradients(number)
    native.graph_launch(execution, training.stream)
    training.step_twin(number)


@each_policy
@pytest.mark.parametrize("mode", ["global", "thread", "relaxed"])
def test_replays(mode, policy, seed):
    """As many steps as replays; capturing is none. The table is allocated during the capture."""
    native.schedule(policy, seed)
    training = capturable()
    before = training.snapshot()
    graph = capture(training, mode)
    finish()
    assert same(before, training.snapshot())
    execution = native.graph_instantiate(graph)
    for n in range(40):
        replay(training, execution, n % 5)
    finish()
    training.assert_same()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


@each_policy
def test_several_steps_in_one_graph_and_steps_between_replays(policy, seed):
    native.schedule(policy, seed)
    training = capturable()
    graph = capture(training, steps=3)
    execution = native.graph_instantiate(graph)
    for n in range(15):
        training.upload_gradients(n % 5)
        native.graph_launch(execution, training.stream)
        for _ in range(3):
            training.step_twin(n % 5)
        training.step()
    finish()
    training.assert_same()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


ORDERS = list(itertools.permutations(["first", "second", "graph"]))


@each_policy
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_destroyed_in_any_order_while_launches_are_queued(order, policy, seed):
    """Meanwhile another optimizer takes every table that it can get, in another stream."""
    native.schedule(policy, seed)
    training, other = capturable(), capturable(50)
    graph = capture(training)
    executions = {name: native.graph_instantiate(graph) for name in ("first", "second")}
    for n, name in enumerate(order):
        for execution in executions.values():
            replay(training, execution, n)
        if name == "graph":
            native.graph_destroy(graph)
        else:
            native.exec_destroy(executions.pop(name))
        for _ in range(TABLES_AT_ONCE):
            other.step()
        other.synchronize()
    finish()
    training.assert_same()
    other.assert_same()
    left = native.live(training.device)
    assert (left["graphs"], left["execs"], left["user_objects"]) == (0, 0, 0)


def test_a_graph_keeps_its_table_until_it_is_gone():
    training, other = capturable(), capturable(50)
    graph = capture(training)
    execution = native.graph_instantiate(graph)
    assert native.live(training.device)["events"] == TABLES_AT_ONCE

    def tables_after_a_queue_of(steps):
        for _ in range(steps):
            other.step()
        other.synchronize()
        return native.live(training.device)["events"]

    assert tables_after_a_queue_of(TABLES_AT_ONCE - 1) == TABLES_AT_ONCE
    assert tables_after_a_queue_of(TABLES_AT_ONCE) == 2 * TABLES_AT_ONCE
    replay(training, execution, 1)
    native.graph_destroy(graph)
    native.exec_destroy(execution)  # its launch is still queued
    assert native.live(training.device)["user_objects"] == 1
    finish()
    assert native.live(training.device)["user_objects"] == 0
    assert tables_after_a_queue_of(2 * TABLES_AT_ONCE) == 2 * TABLES_AT_ONCE
    training.assert_same()


def test_a_replay_does_not_copy_the_table():
    training = capturable()
    graph = capture(training)
    execution = native.graph_instantiate(graph)
    finish()
    native.graph_launch(execution, training.stream)
    assert native.pending() == 3  # the kernel, and the beginning and end of the graph
    finish()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


def test_many_graphs_use_the_same_tables():
    """As a program does that captures anew whenever its shapes change."""
    native.schedule("random", 5)
    training = capturable()
    for n in range(5 * TABLES_AT_ONCE):
        graph = capture(training)
        execution = native.graph_instantiate(graph)
        native.graph_destroy(graph)
        replay(training, execution, n % 5)
        native.exec_destroy(execution)
        finish()
    training.assert_same()
    assert native.live(training.device)["events"] == TABLES_AT_ONCE


def test_small_tables_without_counters_are_kept_by_the_graph_itself():
    momentum = next(row for row in ROWS if row.name == "Momentum")
    training = Training(momentum, tensors(3))
    graph = capture(training)
    execution = native.graph_instantiate(graph)
    for n in range(5):
        replay(training, execution, n)
    finish()
    training.assert_same()
    assert native.live(training.device)["user_objects"] == 0
    assert native.live(training.device)["events"] == 0
    native.exec_destroy(execution)
    native.graph_destroy(graph)


@each_policy
def test_captured_across_two_streams(policy, seed):
    """A step forks off the stream where the capture began, and joins it again."""
    native.schedule(policy, seed)
    training, side = capturable(), native.stream_create(False)
    origin, event = training.stream, native.event_create()
    native.begin_capture(origin, "global")
    native.event_record(event, origin)
    native.stream_wait_event(side, event)
    training.stream = side
    training.queue_step()
    native.event_record(event, side)
    native.stream_wait_event(origin, event)
    training.stream = origin
    training.queue_step()
    graph = native.end_capture(origin)
    execution = native.graph_instantiate(graph)
    for n in range(10):
        replay(training, execution, n % 5)
        training.step_twin(n % 5)
    finish()
    training.assert_same()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


def test_a_capture_of_another_stream_does_not_disturb_steps():
    """Tables are looked for, and allocated, while another stream captures."""
    training, other = capturable(), capturable(50)
    native.begin_capture(other.stream, "global")
    for n in range(2 * TABLES_AT_ONCE):
        training.upload_gradients(n % 5)
        training.queue_step()
        training.step_twin(n % 5)
        if n == TABLES_AT_ONCE:
            other.queue_step()
    graph = native.end_capture(other.stream)
    execution = native.graph_instantiate(graph)
    replay(other, execution, 2)
    finish()
    training.assert_same()
    other.assert_same()
    native.exec_destroy(execution)
    native.graph_destroy(graph)


def test_a_step_in_a_capture_that_has_failed():
    training = capturable()
    before = training.snapshot()
    native.begin_capture(training.stream, "global")
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureUnsupported"):
        native.stream_synchronize(training.stream)
    with pytest.raises(RuntimeError, match=r"CUDA: .*\(cudaErrorStreamCaptureInvalidated\)"):
        training.queue_step()
    with pytest.raises(RuntimeError, match="cudaErrorStreamCaptureInvalidated"):
        native.end_capture(training.stream)
    native.take_last_error()
    finish()
    assert same(before, training.snapshot())
    for _ in range(2 * TABLES_AT_ONCE):
        training.step()
    finish()
    training.assert_same()


def test_a_step_in_the_default_stream_while_a_blocking_stream_captures():
    training = capturable(stream=0)
    blocking = native.stream_create(True)
    native.begin_capture(blocking, "global")
    with pytest.raises(
        RuntimeError,
        match=r"\(cudaErrorStreamCaptureImplicit\) asking whether a stream captures",
    ):
        training.queue_step()
    native.graph_destroy(native.end_capture(blocking))
    training.step()
    finish()
    training.assert_same()


def test_a_step_that_is_not_capturable_is_refused_before_anything_is_captured():
    training = Training(ADAM, tensors(3))
    native.begin_capture(training.stream, "global")
    native.clear_calls()
    with pytest.raises(RuntimeError, match="capturable is False"):
        training.queue_step()
    assert {name for name, _ in native.calls()} == {"cudaGetDevice", "cudaStreamIsCapturing"}
    native.graph_destroy(native.end_capture(training.stream))
