"""The stand-in for CUDA's runtime does what CUDA says, and notes what no correct program does."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import threading

import numpy as np
import pytest
import torch

import fusedopt
from stand_in import (
    BLOCKING,
    DEFAULT_STREAM,
    NON_BLOCKING,
    Cell,
    DeviceMemory,
    bytes_at,
    error,
    finish,
    fresh_device,
    native,
    new_device,
    options_left,
    readable,
    steps_on,
    violation,
)

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)


def test_memory_that_is_fresh_holds_nothing_of_use():
    address = native.malloc(1000)
    assert (bytes_at(native.host_address(address), 1000) == 0xA5).all()
    written = np.frombuffer(native.written(address), bool)
    assert not written.any()
    native.memset(address + 10, 7, 20, DEFAULT_STREAM)
    assert not written.any()
    finish()
    assert np.flatnonzero(written).tolist() == [*range(10, 30)]


def test_copies_read_pinned_memory_when_they_are_done():
    cell, stream = Cell(), native.stream_create(NON_BLOCKING)
    cell.queue(1, stream)
    bytes_at(cell.pinned, 2)[1] = 77
    with violation("pinned memory was changed while a copy of it was queued"):
        native.stream_synchronize(stream)
    assert cell.value == 77


def test_memory_is_freed_once_and_by_its_own_function():
    address, pinned = native.malloc(10), native.host_alloc(10)
    with violation("freed that is not allocated"), error("cudaErrorInvalidValue"):
        native.free(pinned)
    native.free(address)
    with violation("freed that is not allocated"), error("cudaErrorInvalidValue"):
        native.free(address)
    with violation("memory to fill"), error("cudaErrorInvalidValue"):
        native.memset(address, 0, 1, DEFAULT_STREAM)
    native.free_host(pinned)
    with violation("not pinned"), error("cudaErrorInvalidValue"):
        native.upload(native.malloc(10), pinned, 10, DEFAULT_STREAM)


def test_copies_stay_in_bounds_and_on_their_device():
    cell = Cell()
    with violation("not the device's"), error("cudaErrorInvalidValue"):
        native.upload(cell.address, cell.pinned, 257, DEFAULT_STREAM)
    new_device()
    with violation("not the device's"), error("cudaErrorInvalidValue"):
        cell.queue(1, native.stream_create(NON_BLOCKING))


def test_a_stream_keeps_its_order_whatever_the_seed():
    for seed in range(10):
        native.schedule("random", seed)
        cell, stream = Cell(), native.stream_create(NON_BLOCKING)
        for value in range(20):
            cell.queue(value, stream)
        native.stream_synchronize(stream)
        assert cell.value == 19


def test_streams_have_no_order_among_each_other():
    seen = set()
    for seed in range(20):
        native.schedule("random", seed)
        cell, other = Cell(), native.stream_create(NON_BLOCKING)
        cell.queue(1, native.stream_create(NON_BLOCKING))
        cell.queue(2, other)
        finish()
        seen.add(int(cell.value))
    assert seen == {1, 2}


def test_work_waits_for_somebody_to_wait_for_it():
    cell, stream = Cell(), native.stream_create(NON_BLOCKING)
    other, event = native.stream_create(NON_BLOCKING), native.event_create()
    cell.queue(1, stream)
    native.event_record(event, stream)
    cell.queue(2, stream)
    native.stream_synchronize(other)
    assert cell.value == 0xA5
    with error("cudaErrorNotReady"):
        native.event_query(event)
    native.event_synchronize(event)
    assert cell.value == 1
    native.event_query(event)
    native.device_synchronize()
    assert cell.value == 2


def test_work_comes_early_by_chance():
    early = 0
    for seed in range(20):
        native.schedule("random", seed)
        cell = Cell()
        cell.queue(1, native.stream_create(NON_BLOCKING))
        for _ in range(3):
            native.get_device()
        early += cell.value == 1
        finish()
    assert 0 < early < 20


def test_a_stream_waits_for_an_event():
    for seed in range(20):
        native.schedule("random", seed)
        cell, event = Cell(), native.event_create()
        first, second = (native.stream_create(NON_BLOCKING) for _ in range(2))
        cell.queue(1, first)
        native.event_record(event, first)
        native.stream_wait_event(second, event)
        cell.queue(2, second)
        finish()
        assert cell.value == 2


def test_an_event_that_was_never_recorded_is_done():
    event, stream = native.event_create(), native.stream_create(NON_BLOCKING)
    native.event_query(event)
    native.event_synchronize(event)
    native.stream_wait_event(stream, event)
    native.event_destroy(event)
    with violation("an event that does not exist"), error("cudaErrorInvalidResourceHandle"):
        native.event_query(event)


def test_the_default_stream_waits_for_blocking_streams_and_they_for_it():
    seen = set()
    for seed in range(20):
        native.schedule("random", seed)
        cell, blocking = Cell(), native.stream_create(BLOCKING)
        cell.queue(1, blocking)
        cell.queue(2, DEFAULT_STREAM)
        cell.queue(3, native.stream_create(BLOCKING))
        native.device_synchronize()
        assert cell.value == 3
        cell.queue(4, DEFAULT_STREAM)
        cell.queue(5, native.stream_create(NON_BLOCKING))
        finish()
        seen.add(int(cell.value))
    assert seen == {4, 5}


def test_a_stream_that_is_destroyed_finishes_its_work():
    cell, stream = Cell(), native.stream_create(BLOCKING)
    cell.queue(1, stream)
    native.stream_destroy(stream)
    assert cell.value == 0xA5
    with violation("a stream that does not exist"), error("cudaErrorInvalidResourceHandle"):
        cell.queue(2, stream)
    native.memset(native.malloc(1), 0, 1, DEFAULT_STREAM)
    native.stream_synchronize(DEFAULT_STREAM)
    assert cell.value == 1


def test_freeing_waits_for_the_device():
    cell = Cell()
    cell.queue(1, native.stream_create(NON_BLOCKING))
    native.free(native.malloc(1))
    assert cell.value == 1


def test_every_thread_has_a_current_device():
    device = native.get_device()
    new_device()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(native.get_device()))
    thread.start()
    thread.join()
    assert seen == [0]
    assert native.get_device() == device + 1
    with error("cudaErrorInvalidDevice"):
        native.set_device(device + 2)


def test_kernels_are_launched_and_events_recorded_on_the_streams_device():
    stream, event = native.stream_create(NON_BLOCKING), native.event_create()
    device = native.get_device()
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    other = new_device()
    with (
        steps_on(other, stream),
        pytest.raises(RuntimeError, match=r"InvalidResourceHandle\) launching 1 blocks of 128"),
    ):
        fusedopt.SGD([param]).step()
    native.set_device(device)
    elsewhere = native.stream_create(NON_BLOCKING)
    new_device()
    event = native.event_create()
    with violation("of another device"), error("cudaErrorInvalidResourceHandle"):
        native.event_record(event, elsewhere)


def test_a_launch_finds_memory_of_its_device_that_holds_something():
    memory = DeviceMemory(4096)
    param = torch.nn.Parameter(memory.put(torch.ones(3)))
    param.grad = memory.put(torch.ones(3))
    optimizer = fusedopt.SGD([param])
    stream = native.stream_create(NON_BLOCKING)
    memory.written[16:20] = False  # where the gradient lies
    with steps_on(native.get_device(), stream):
        optimizer.step()
    with violation("never written, or beyond its end: the gradient"):
        native.finish()
    memory.written[:] = True
    with steps_on(new_device(), 0):
        optimizer.step()
    native.finish()
    noted = native.take_violations()
    assert len(noted) == 2
    assert all("of another device" in each for each in noted)
    assert (readable(param) == 1).all()


def test_who_runs_a_launch_is_told_what_it_may_touch():
    memory = DeviceMemory(4096)
    param = torch.nn.Parameter(memory.put(torch.ones(4, 2).t()))
    param.grad = memory.put(torch.ones(2, 4))
    launches = []

    def subtract(launch):
        launches.append(launch)
        readable(param).sub_(1)

    native.set_executor(subtract)
    try:
        with steps_on(native.get_device(), 0):
            fusedopt.SGD([param]).step()
        assert not launches
        finish()
    finally:
        native.set_executor(None)
    (launch,) = launches
    assert (launch["kind"], launch["blocks"], launch["threads"]) == ("small", 1, 128)
    assert launch["device"] == native.get_device()
    assert len(launch["parameter"]) == 4096
    (allocation,) = launch["memory"]
    assert (allocation["address"], allocation["size"]) == (memory.address, 4096)
    assert allocation["host"] == native.host_address(memory.address)
    described = {
        element["name"]: (
            element["address"], element["element_size"], element["dims"], element["readable"],
            element["writable"],
        )
        for element in launch["elements"]
    }  # fmt: skip
    assert described == {
        "the parameter": (param.data_ptr(), 4, [(4, 2), (2, 1)], True, True),
        "the gradient": (param.grad.data_ptr(), 4, [(4, 1), (2, 4)], True, False),
    }
    assert not readable(param).any()


def test_an_error_in_who_runs_a_launch_is_noted():
    def fail(launch):
        raise ValueError("no such kernel")

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    native.set_executor(fail)
    try:
        with steps_on(native.get_device(), 0):
            fusedopt.SGD([param]).step()
        with violation("no such kernel"):
            native.finish()
    finally:
        native.set_executor(None)


def test_kernels_find_the_options_that_are_left_to_them():
    param, lr = torch.nn.Parameter(torch.ones(3)), torch.tensor(0.0)
    param.grad = torch.ones(3)
    optimizer = fusedopt.SGD([param], lr=0.5)
    (group,) = optimizer.param_groups
    with steps_on(native.get_device(), 0), options_left([{**group, "lr": lr}]):
        for rate, expected in ((0.25, 0.75), (0.125, 0.625)):
            lr.fill_(rate)
            optimizer.step()
            finish()
            assert param.tolist() == [expected] * 3


def test_options_are_left_for_parameters_that_are_stepped():
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = fusedopt.SGD([param])
    (group,) = optimizer.param_groups
    with (
        steps_on(native.get_device(), 0),
        options_left([{**group, "params": []}]),
        pytest.raises(RuntimeError, match="not stepped"),
    ):
        optimizer.step()
    assert param.tolist() == [1] * 3


def test_calls_fail_on_demand_and_without_effect():
    native.fail("cudaMalloc", 2, 2)
    native.malloc(1)
    native.get_device()
    with error("cudaErrorMemoryAllocation"):
        native.malloc(1)
    assert native.live(native.get_device())["memory"] == [1]
    native.fail("", 2, 999)
    native.get_device()
    with error("cudaErrorUnknown"):
        native.get_device()
    native.get_device()


def test_the_module_of_the_engine_counts_devices():
    """It is compiled into the stand-in, too."""
    loader = importlib.machinery.ExtensionFileLoader("_cuda", native.__file__)
    spec = importlib.util.spec_from_loader("_cuda", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    assert module.device_count() == native.get_device() + 1
    native.fail("cudaGetDeviceCount", 1, 999)
    with pytest.raises(RuntimeError, match=r"\(cudaErrorUnknown\) asking for devices"):
        module.device_count()
