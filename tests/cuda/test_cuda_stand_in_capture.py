"""Capture, graphs and their objects in the stand-in for CUDA's runtime."""

from __future__ import annotations

import threading

import pytest

from stand_in import (
    BLOCKING,
    DEFAULT_STREAM,
    NON_BLOCKING,
    Cell,
    bytes_at,
    error,
    finish,
    fresh_device,
    native,
)

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)

FORBIDDEN = {
    "memory is allocated": lambda cell, event: native.malloc(1),
    "pinned memory is allocated": lambda cell, event: native.host_alloc(1),
    "memory is freed": lambda cell, event: native.free(cell.address),
    "an event is asked": lambda cell, event: native.event_query(event),
    "an event is waited for": lambda cell, event: native.event_synchronize(event),
    "a stream is waited for": lambda cell, event: native.stream_synchronize(DEFAULT_STREAM),
    "the device is waited for": lambda cell, event: native.device_synchronize(),
}


def captured(*values):
    """A graph that writes these values to a cell, one after the other."""
    cell, stream = Cell(), native.stream_create(NON_BLOCKING)
    native.begin_capture(stream, "global")
    for value in values:
        cell.queue(value, stream)
    return cell, stream, native.end_capture(stream)


def test_what_is_captured_is_done_at_every_launch_and_not_before():
    cell, stream, graph = captured(1, 2)
    finish()
    assert cell.value == 0xA5
    execution = native.graph_instantiate(graph)
    for _ in range(2):
        native.memset(cell.address, 9, 1, stream)
        native.graph_launch(execution, stream)
        native.stream_synchronize(stream)
        assert cell.value == 2


def test_a_launch_keeps_its_place_in_the_stream():
    for seed in range(10):
        native.schedule("random", seed)
        cell, stream, graph = captured(1)
        execution = native.graph_instantiate(graph)
        cell.queue(5, stream)
        native.graph_launch(execution, stream)
        native.stream_synchronize(stream)
        assert cell.value == 1
        native.graph_launch(execution, stream)
        cell.queue(6, stream)
        native.stream_synchronize(stream)
        assert cell.value == 6


def test_a_graph_may_be_destroyed_while_its_launches_are_queued():
    cell, stream, graph = captured(1)
    execution = native.graph_instantiate(graph)
    native.graph_destroy(graph)
    native.graph_launch(execution, stream)
    native.exec_destroy(execution)
    finish()
    assert cell.value == 1
    for destroy, handle in ((native.graph_destroy, graph), (native.exec_destroy, execution)):
        with error("cudaErrorInvalidValue"):
            destroy(handle)
    assert len(native.take_violations()) == 2


@pytest.mark.parametrize("what", FORBIDDEN)
def test_calls_that_a_capture_forbids_end_it(what):
    cell, event = Cell(), native.event_create()
    for mode, is_forbidden in (("global", True), ("thread", True), ("relaxed", False)):
        stream = native.stream_create(NON_BLOCKING)
        native.begin_capture(stream, mode)
        if not is_forbidden:
            FORBIDDEN[what](cell, event)
            native.graph_destroy(native.end_capture(stream))
            continue
        with error("cudaErrorStreamCaptureUnsupported"):
            FORBIDDEN[what](cell, event)
        with error("cudaErrorStreamCaptureInvalidated"):
            cell.queue(1, stream)
        with error("cudaErrorStreamCaptureInvalidated"):
            native.end_capture(stream)
    assert native.live(native.get_device())["graphs"] == 0


@pytest.mark.parametrize(("mode", "is_forbidden"), [("global", True), ("thread", False)])
def test_a_global_capture_forbids_them_in_every_thread(mode, is_forbidden):
    stream, failures = native.stream_create(NON_BLOCKING), []

    def allocate():
        try:
            native.malloc(1)
        except RuntimeError as raised:
            failures.append(str(raised))

    native.begin_capture(stream, mode)
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    assert failures == ["cudaErrorStreamCaptureUnsupported"] * is_forbidden
    if not is_forbidden:
        native.graph_destroy(native.end_capture(stream))
    else:
        with error("cudaErrorStreamCaptureInvalidated"):
            native.end_capture(stream)


def test_a_capture_ends_where_it_began():
    stream, other = (native.stream_create(NON_BLOCKING) for _ in range(2))
    with error("cudaErrorStreamCaptureUnsupported"):
        native.begin_capture(DEFAULT_STREAM, "global")
    native.begin_capture(stream, "global")
    with error("cudaErrorStreamCaptureUnmatched"):
        native.end_capture(other)
    failures = []

    def end():
        try:
            native.end_capture(stream)
        except RuntimeError as raised:
            failures.append(str(raised))

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    assert failures == ["cudaErrorStreamCaptureWrongThread"]
    native.graph_destroy(native.end_capture(stream))


def test_streams_that_a_capture_forks_have_to_join_it():
    cell, event = Cell(), native.event_create()
    for joins in (False, True):
        stream, fork = (native.stream_create(NON_BLOCKING) for _ in range(2))
        native.begin_capture(stream, "global")
        native.event_record(event, stream)
        native.stream_wait_event(fork, event)
        cell.queue(1, fork)
        if not joins:
            with error("cudaErrorStreamCaptureUnjoined"):
                native.end_capture(stream)
            continue
        native.event_record(event, fork)
        native.stream_wait_event(stream, event)
        cell.queue(2, stream)
        execution = native.graph_instantiate(native.end_capture(stream))
    for seed in range(10):
        native.schedule("random", seed)
        native.graph_launch(execution, stream)
        native.stream_synchronize(stream)
        assert cell.value == 2
        native.memset(cell.address, 9, 1, stream)


def test_events_of_a_capture_say_nothing():
    event, stream = native.event_create(), native.stream_create(NON_BLOCKING)
    native.begin_capture(stream, "relaxed")
    native.event_record(event, stream)
    with error("cudaErrorCapturedEvent"):
        native.event_query(event)
    with error("cudaErrorStreamCaptureInvalidated"):
        native.end_capture(stream)
    with error("cudaErrorCapturedEvent"):
        native.stream_wait_event(stream, event)
    native.event_record(event, stream)
    native.event_synchronize(event)


def test_a_capture_waits_for_nothing_outside():
    event, (stream, other) = native.event_create(), (native.stream_create(False) for _ in range(2))
    native.event_record(event, other)
    native.begin_capture(stream, "relaxed")
    with error("cudaErrorStreamCaptureIsolation"):
        native.stream_wait_event(stream, event)
    with error("cudaErrorStreamCaptureInvalidated"):
        native.end_capture(stream)


def test_the_default_stream_disturbs_a_capture_of_a_blocking_stream():
    cell = Cell()
    for kind in (NON_BLOCKING, BLOCKING):
        stream = native.stream_create(kind)
        native.begin_capture(stream, "relaxed")
        if kind is NON_BLOCKING:
            cell.queue(1, DEFAULT_STREAM)
            native.graph_destroy(native.end_capture(stream))
            continue
        with error("cudaErrorStreamCaptureImplicit"):
            cell.queue(1, DEFAULT_STREAM)
        with error("cudaErrorStreamCaptureInvalidated"):
            native.end_capture(stream)


def test_pinned_memory_is_read_at_every_replay():
    cell, stream, graph = captured(1)
    execution = native.graph_instantiate(graph)
    native.graph_launch(execution, stream)
    native.stream_synchronize(stream)
    bytes_at(cell.pinned, 2)[1] = 50
    native.graph_launch(execution, stream)
    native.stream_synchronize(stream)
    assert cell.value == 50
