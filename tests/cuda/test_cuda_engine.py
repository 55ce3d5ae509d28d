"""The CUDA engine itself, host code and all, on a stand-in for CUDA's runtime.

What is queued runs as late as it may, or by chance earlier; results are compared as integers with
those of the CPU engine. What fails is in ``test_cuda_engine_failures.py``.
"""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import warnings

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from helpers import bits
from stand_in import (
    ADAM,
    TABLES_AT_ONCE,
    DeviceMemory,
    Training,
    bytes_at,
    each_policy,
    finish,
    floats_at,
    fresh_device,
    native,
    new_device,
    options_left,
    readable,
    same,
    steps_on,
    tables,
    tensors,
)

SMALLEST = 65536  # bytes of memory for a table; the next size has twice as many
NEARLY_FULL = 815  # tensors, of 80 bytes each in Adam's table, beside 192 bytes of options

pytestmark = pytest.mark.usefixtures(fresh_device.__name__)


TABLES = {
    # The kernel's parameter, small and large; then memory of its own, of the one or the other size,
    # for one dtype and for several; and the counter of blocks.
    "small": ({"count": 3}, {}, 1500, 0),
    "large": ({"count": 60}, {}, 500, 0),
    "overflow": ({"count": 420}, {}, 100, TABLES_AT_ONCE),
    "more than the smallest": ({"count": 900, "size": 1}, {}, 40, TABLES_AT_ONCE),
    "mixed": ({"count": 60}, {"grad_dtype": torch.float64}, 500, TABLES_AT_ONCE),
    "counting": ({"count": 5, "size": 5000}, {"capturable": True}, 200, TABLES_AT_ONCE),
}


@each_policy
@pytest.mark.parametrize("table", TABLES)
def test_thousands_of_steps(table, policy, seed):
    """Tables are used again while earlier steps are still queued."""
    values, options, steps, least = TABLES[table]
    native.schedule(policy, seed)
    training = Training(ADAM, tensors(**values), weight_decay=0.1, **options)
    rng = random.Random(seed)
    for n in range(steps):
        training.step()
        if rng.random() < 0.05 or n == steps // 2:
            training.synchronize()
    finish()
    training.assert_same()
    assert tables(training.device) >= least
    assert tables(training.device) < steps


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_optimizer_dtype_and_option(row):
    native.schedule("random", 7)
    for dtype in DTYPES:
        for options in row.options:
            for capturable in (False, True):
                values = tensors(2, 3000, dtype) + tensors(3, 5, dtype, seed=1)
                training = Training(row, values, capturable=capturable, **options)
                for _ in range(4):
                    training.step()
                finish()
                training.assert_same()


def test_a_table_is_not_used_again_before_its_launch_is_done():
    training = Training(ADAM, tensors(60), grad_dtype=torch.float64)
    for _ in range(5 * TABLES_AT_ONCE):
        training.step()
    assert tables(training.device) == 5 * TABLES_AT_ONCE
    assert native.pending() > 0
    for _ in range(20):
        training.synchronize()
        for _ in range(5 * TABLES_AT_ONCE):
            training.step()
    assert tables(training.device) == 5 * TABLES_AT_ONCE
    finish()
    training.assert_same()


CALLS = {
    "a small table": ({}, [
        "cudaGetDevice", "cudaStreamIsCapturing", "cudaGetDevice", "cudaGetDevice",
        "cudaLaunchKernel",
    ]),
    "a table that overflows": ({"grad_dtype": torch.float64}, [
        "cudaGetDevice", "cudaStreamIsCapturing", "cudaGetDevice",
        "cudaThreadExchangeStreamCaptureMode", "cudaEventQuery",
        "cudaThreadExchangeStreamCaptureMode", "cudaGetDevice", "cudaMemcpyAsync",
        "cudaLaunchKernel", "cudaEventRecord",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("table", CALLS)
def test_a_step_calls_no_more_than_it_needs(table):
    """Nothing is allocated and nothing waited for."""
    options, expected = CALLS[table]
    training = Training(ADAM, tensors(60), **options)
    training.step()
    training.synchronize()
    native.clear_calls()
    training.queue_step()
    assert [name for name, _ in native.calls()] == expected


@each_policy
def test_two_streams_with_events(policy, seed):
    """Steps of one optimizer in turn on two streams, each of which waits for the other."""
    native.schedule(policy, seed)
    training = Training(ADAM, tensors(60), grad_dtype=torch.float64)
    streams = [training.stream, native.stream_create(True)]
    event = native.event_create()
    for n in range(100):
        training.step()
        native.event_record(event, training.stream)
        training.stream = streams[n % 2]
        native.stream_wait_event(training.stream, event)
    native.event_synchronize(event)
    training.assert_same()


@each_policy
def test_two_optimizers_on_two_streams_share_tables(policy, seed):
    native.schedule(policy, seed)
    trainings = [
        Training(ADAM, tensors(50 + 20 * n), capturable=n == 1, grad_dtype=torch.float64)
        for n in range(3)
    ]
    for n in range(150):
        trainings[n % 3 if n < 100 else n % 2].step()
        if n % 10 == 9:
            trainings[n % 3].synchronize()
    finish()
    for training in trainings:
        training.assert_same()


@each_policy
def test_tables_of_several_sizes_side_by_side(policy, seed):
    """Some fill their memory nearly to its end, and none is given a smaller one."""
    native.schedule(policy, seed)
    counts = (NEARLY_FULL, NEARLY_FULL, NEARLY_FULL + 100)
    trainings = [Training(ADAM, tensors(count, size=1), capturable=True) for count in counts]
    for n in range(24):
        trainings[n % 3].step()
        if n % 6 == 5:
            trainings[n // 6 % 3].synchronize()
    finish()
    for training in trainings:
        training.assert_same()
    slabs = native.live(trainings[0].device)["memory"][len(trainings) :]
    around = 1024  # bytes ahead of each table
    assert {*slabs} == {TABLES_AT_ONCE * (around + size) for size in (SMALLEST, 2 * SMALLEST)}


def test_the_default_stream():
    """Blocking streams wait for it, and it waits for them."""
    for seed in range(5):
        native.schedule("random", seed)
        training = Training(ADAM, tensors(60), stream=0, grad_dtype=torch.float64)
        blocking = native.stream_create(True)
        for n in range(30):
            training.stream = blocking if n % 3 == 2 else 0
            training.step()
        native.device_synchronize()
        training.assert_same()


@each_policy
def test_two_devices(policy, seed):
    """Whichever is the current one, which stays so; the memory of a device is its own."""
    native.schedule(policy, seed)
    trainings = []
    for _ in range(2):
        new_device()
        trainings.append(Training(ADAM, tensors(60), capturable=True, grad_dtype=torch.float64))
    for n in range(60):
        training = trainings[n % 2]
        native.set_device(training.device)
        training.upload_gradients(n % 5)
        other = trainings[n // 2 % 2].device
        native.set_device(other)
        training.queue_step()
        assert native.get_device() == other
        training.step_twin(n % 5)
    finish()
    for training in trainings:
        training.assert_same()
        assert tables(training.device) > 0


def test_two_threads():
    native.schedule("random", 3)
    trainings = [Training(ADAM, tensors(60), grad_dtype=torch.float64) for _ in range(2)]
    device = native.get_device()

    def train(training):
        native.set_device(device)
        for n in range(100):
            training.upload_gradients(n % 5)
            native.use(device, training.stream)
            training.optimizer.step()

    with steps_on(device, 0):
        threads = [threading.Thread(target=train, args=(training,)) for training in trainings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finish()
    for training in trainings:
        for n in range(100):
            training.step_twin(n % 5)
        training.assert_same()


@each_policy
@pytest.mark.parametrize("capturable", [False, True])
def test_grad_scaler_on_the_device(capturable, policy, seed):
    """Scale and finding change in the stream, between steps that are queued."""
    native.schedule(policy, seed)
    training = Training(ADAM, tensors(20, 50), capturable=capturable)
    scale = training.memory.put(torch.tensor([4.0, 0.0]))
    pinned = native.host_alloc(64)
    choices = np.array([[4.0, 0.0], [4.0, 1.0], [8.0, 0.0], [0.5, np.nan]], np.float32)
    view = floats_at(pinned, choices.size)
    view[:] = choices.ravel()
    rng = random.Random(seed)
    for n in range(60):
        choice = rng.randrange(len(choices))
        native.upload(scale.data_ptr(), pinned + 8 * choice, 8, training.stream)
        training.upload_gradients(n % 5)
        training.optimizer.grad_scale, training.optimizer.found_inf = scale[0], scale[1]
        training.queue_step()
        del training.optimizer.grad_scale, training.optimizer.found_inf
        training.set_gradients_of_twins(n % 5)
        training.twin.grad_scale = torch.tensor(choices[choice][0])
        training.twin.found_inf = torch.tensor(choices[choice][1])
        training.twin.step()
        del training.twin.grad_scale, training.twin.found_inf
    finish()
    training.assert_same()
    for param, twin in zip(training.params, training.twins, strict=True):
        assert np.array_equal(bits(readable(param.grad)), bits(twin.grad))


@each_policy
def test_options_in_the_devices_memory(policy, seed):
    """The launch reads the learning rate when it runs."""
    native.schedule(policy, seed)
    training = Training(ADAM, tensors(60), capturable=True)
    rates = [0.1, 0.05, 0.0]
    pinned = native.host_alloc(64)
    floats_at(pinned, 3)[:] = rates
    lr = training.memory.put(torch.tensor(0.1))
    (group,) = training.optimizer.param_groups
    with options_left([{**group, "lr": lr}]):
        for n in range(60):
            native.upload(lr.data_ptr(), pinned + 4 * (n % 3), 4, training.stream)
            training.twin.param_groups[0]["lr"] = torch.tensor(rates[n % 3]).item()
            training.step()
    finish()
    training.assert_same()


@each_policy
@pytest.mark.parametrize("options", [{}, {"capturable": True}], ids=str)
def test_parameters_that_share_memory_are_launched_in_order(options, policy, seed):
    native.schedule(policy, seed)
    device = native.get_device()
    stream = native.stream_create(False)
    values, grads = torch.randn(9000), torch.randn(2, 6000)
    memory = DeviceMemory(200_000)
    ours, theirs = memory.put(values), values.clone()
    results = []
    for buffer, put, more in ((ours, memory.put, options), (theirs, torch.clone, {})):
        params = [torch.nn.Parameter(buffer[:6000]), torch.nn.Parameter(buffer[3000:])]
        for param, grad in zip(params, grads, strict=True):
            param.grad = put(grad)
        results.append(fusedopt.Adagrad(params, lr=0.1, **more))
    before = native.launches()
    for _ in range(5):
        with steps_on(device, stream):
            results[0].step()
        results[1].step()
    finish()
    assert native.launches() == before + 10
    assert np.array_equal(bits(readable(ours)), bits(theirs))


@pytest.mark.parametrize("count", [3, 500])
def test_nothing_is_launched_for_empty_tensors(count):
    """Unless a kernel has to count their steps."""
    for capturable in (False, True):
        params = [torch.nn.Parameter(torch.empty(0)) for _ in range(count)]
        for param in params:
            param.grad = torch.empty(0)
        optimizer = fusedopt.Adam(params, capturable=capturable)
        before = native.launches()
        for _ in range(3):
            with steps_on(native.get_device(), 0):
                optimizer.step()
        finish()
        assert native.launches() == before + 3 * capturable
        assert {optimizer.state[param]["step"].item() for param in params} == {3}


def test_only_the_table_is_copied():
    """Of the memory for a table, the rest holds nothing still."""
    training = Training(ADAM, tensors(60), grad_dtype=torch.float64)
    launches = []
    native.set_executor(launches.append)
    try:
        training.queue_step()
        finish()
    finally:
        native.set_executor(None)
    (launch,) = launches
    assert launch["kind"] == "double"
    (table,) = (e for e in launch["elements"] if e["name"] == "the table")
    ((size, _),) = table["dims"]
    (slab,) = (m for m in launch["memory"] if m["address"] < table["address"] <
               m["address"] + m["size"])  # fmt: skip
    begin = table["address"] - slab["address"]
    content = bytes_at(slab["host"], slab["size"])
    assert (content[begin + size : begin + size + 1000] == 0).all()  # cleared, not copied
    assert content[begin : begin + size].any()


@pytest.mark.parametrize("how", ["torch reads it", "the CPU engine steps it"])
def test_whoever_touches_the_devices_memory_on_the_host_dies(how):
    """So all other tests say as well that the library does not."""
    param = torch.nn.Parameter(DeviceMemory(4096).put(torch.ones(3)))
    param.grad = torch.ones(3)
    optimizer = fusedopt.SGD([param])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks where there are threads
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        param.sum() if how == "torch reads it" else optimizer.step()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGSEGV


def test_versions_and_states_of_a_queued_step():
    """For autograd the step has happened as soon as it is queued."""
    training = Training(ADAM, tensors(3))
    before = training.snapshot()
    versions = [param._version for param in training.params]
    training.queue_step()
    assert [param._version for param in training.params] == [v + 1 for v in versions]
    unchanged = training.snapshot()
    assert not same(before, unchanged)  # the host has counted the step
    assert same(before[0::4], unchanged[0::4])
    finish()
    assert not same(before[0::4], training.snapshot()[0::4])
