"""A step runs on the caller's current stream and on the parameters' device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    assert_same,
    feed,
    gradient_steps,
    mixed_tensors,
    optimizer_on,
    params_of,
    twins,
)

# About 10 ms: what is on another stream than the gradients would be far ahead of them.
DELAY = 20_000_000

(ADAM,) = (case for case in LARGEST_CASES if case.row.name == "Adam")


def on_gpu(steps):
    """The gradients of every step, on the GPU."""
    moved = [[grad.to(GPU) for grad in grads] for grads in steps]
    torch.cuda.synchronize()
    return moved


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_the_callers_stream(case, capturable):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, capturable=capturable)
    steps = gradient_steps(tensors, 5)
    moved = on_gpu(steps)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for grads in moved:
            torch.cuda._sleep(DELAY)
            feed(grads, gpu)
            gpu.step()
    stream.synchronize()
    for grads in steps:
        feed(grads, cpu)
        cpu.step()
    assert_same(gpu, cpu)


@pytest.mark.parametrize("count", [3, 1000])
def test_a_producer_on_another_stream(count):
    """The step waits for what its stream waits for."""
    case = ADAM
    torch.manual_seed(0)
    tensors = [torch.randn(1 + i % 100) for i in range(count)]
    gpu, cpu = twins(case, tensors)
    steps = gradient_steps(tensors, 4)
    producer, consumer = torch.cuda.Stream(), torch.cuda.current_stream()
    for grads in on_gpu(steps):
        producer.wait_stream(consumer)
        with torch.cuda.stream(producer):
            torch.cuda._sleep(DELAY)
            feed(grads, gpu)
        consumer.wait_stream(producer)
        gpu.step()
    for grads in steps:
        feed(grads, cpu)
        cpu.step()
    assert_same(gpu, cpu)


@pytest.mark.parametrize("count", [3, 1000])
def test_two_threads_with_a_stream_each(count):
    case = ADAM
    torch.manual_seed(0)
    tensors = [torch.randn(1 + i % 100) for i in range(count)]
    pairs = [twins(case, tensors, capturable=capturable) for capturable in (False, True)]
    all_steps = [gradient_steps(tensors, 3, seed=seed) for seed in (0, 1)]
    moved = [on_gpu(steps) for steps in all_steps]
    rounds = 20

    def work(index):
        gpu, _ = pairs[index]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(rounds):
                for grads in moved[index]:
                    feed(grads, gpu)
                    gpu.step()
        stream.synchronize()

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(work, index) for index in range(2)]:
            future.result()
    for (gpu, cpu), steps in zip(pairs, all_steps, strict=True):
        for _ in range(rounds):
            for grads in steps:
                feed(grads, cpu)
                cpu.step()
        assert_same(gpu, cpu)


def test_many_large_tables_in_flight():
    """The host is far ahead of the GPU: no table may be overwritten that is still to be read."""
    case = ADAM
    torch.manual_seed(0)
    tensors = [torch.randn(1 + i % 20) for i in range(1000)]
    gpu, cpu = twins(case, tensors)
    grads = [torch.ones_like(tensor) for tensor in tensors]
    feed(grads, gpu, cpu)
    gpu.step()
    cpu.step()
    torch.cuda._sleep(10 * DELAY)
    # A rate of its own for every step, which the table carries.
    for step in range(40):
        for optimizer in (gpu, cpu):
            optimizer.param_groups[0]["lr"] = 1e-3 * (step + 1)
        gpu.step()
        cpu.step()
    assert_same(gpu, cpu)


def test_parameters_on_every_gpu():
    """Also where the current device is another one."""
    for case in LARGEST_CASES:
        for index in range(torch.cuda.device_count()):
            tensors = mixed_tensors()
            gpu = optimizer_on(torch.device("cuda", index), case, tensors)
            cpu = optimizer_on("cpu", case, tensors)
            for grads in gradient_steps(tensors, 3):
                feed(grads, gpu, cpu)
                gpu.step()
                cpu.step()
            assert_same(gpu, cpu, f"cuda:{index}")
            assert torch.cuda.current_device() == 0
            assert all(param.get_device() == index for param in params_of(gpu))
