"""max_grad_norm and skip_nonfinite on the GPU: decided there, with the bits of the CPU."""

from __future__ import annotations

import math

import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES, DTYPES
from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    assert_same,
    capture,
    feed,
    gpu_activity,
    gradient_steps,
    mixed_tensors,
    optimizer_on,
    params_of,
    step_all,
)
from helpers import content

OPTIONS = {"max_grad_norm": 2.0, "skip_nonfinite": True}


def twins(case, tensors, **more):
    """The same on the GPU, with more options, and on the CPU."""
    return (
        optimizer_on(GPU, case, tensors, **OPTIONS, **more),
        optimizer_on("cpu", case, tensors, **OPTIONS),
    )


def ordinary_steps(tensors, steps):
    """Normal gradients, of which every third set has a NaN."""
    generator = torch.Generator().manual_seed(1)
    every = [
        [torch.randn(t.shape, generator=generator).to(t.dtype) for t in tensors]
        for _ in range(steps)
    ]
    for grads in every[2::3]:
        grads[-1].view(-1)[-1] = math.nan
    return every


def assert_same_norm(gpu, cpu):
    assert gpu.grad_norm.device.type == gpu.skipped.device.type == "cuda"
    assert content(gpu.grad_norm) == content(cpu.grad_norm)
    assert bool(gpu.skipped) == bool(cpu.skipped)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_clipped_and_skipped_steps(case, capturable):
    tensors = [*mixed_tensors(), torch.randn(300, 300)]
    gpu, cpu = twins(case, tensors, capturable=capturable)
    for grads in ordinary_steps(tensors, 6):
        step_all(grads, gpu, cpu)
        assert_same_norm(gpu, cpu)
        assert_same(gpu, cpu)


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_gradients_of_every_kind(case):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors)
    for grads in gradient_steps(tensors, 4):
        step_all(grads, gpu, cpu)
        assert_same_norm(gpu, cpu)


@pytest.mark.parametrize("count", [1, 60, 300, 3000])
def test_any_number_of_tensors_and_blocks(count):
    tensors = [torch.randn(1 + n % 5) for n in range(count)] + [torch.randn(200_003)]
    gpu, cpu = twins(LARGEST_CASES[-1], tensors)
    for grads in ordinary_steps(tensors, 4):
        step_all(grads, gpu, cpu)
        assert_same_norm(gpu, cpu)
    assert_same(gpu, cpu)


def test_replays_find_their_own_norms():
    tensors = mixed_tensors()
    gpu, cpu = twins(LARGEST_CASES[-1], tensors, capturable=True)
    first, *others = ordinary_steps(tensors, 8)
    step_all(first, gpu, cpu)
    graph = capture(gpu)
    for grads in others:
        feed(grads, gpu, cpu)
        graph.replay()
        cpu.step()
        assert_same_norm(gpu, cpu)
    assert_same(gpu, cpu)


def test_one_launch_measures_and_one_updates(tmp_path):
    optimizer = optimizer_on(GPU, LARGEST_CASES[-1], [torch.randn(100)] * 20, max_grad_norm=1.0)
    optimizer.step()
    found = gpu_activity(optimizer.step, tmp_path)
    assert len(found["kernel"]) == 2
    assert not found["gpu_memcpy"]
    assert not found["gpu_memset"]


def test_a_clipped_step_does_not_synchronise():
    gpu, _ = twins(LARGEST_CASES[-1], [torch.randn(100)] * 3)
    step_all([torch.randn(100)] * 3, gpu)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(700_000_000)
    done.record()
    gpu.step()
    norm = gpu.grad_norm
    assert not done.query()
    torch.cuda.synchronize()
    assert norm.isfinite()


def test_parameters_on_both_sides():
    """One norm over the GPU and the CPU, which the host adds up."""
    tensors = [torch.randn(100) for _ in range(4)]
    cpu = optimizer_on("cpu", LARGEST_CASES[-1], tensors, **OPTIONS)
    both = optimizer_on("cpu", LARGEST_CASES[-1], tensors, **OPTIONS)
    for param in params_of(both)[:2]:
        param.data, param.grad = param.data.to(GPU), None
        param.grad = torch.zeros_like(param)
    for grads in ordinary_steps(tensors, 5):
        step_all(grads, both, cpu)
        assert_same_norm(both, cpu)
    assert_same(both, cpu)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_functions_in_place_of_torchs(dtype):
    grads = [torch.randn(size).to(dtype) for size in (5, 1000, 70_000)]
    found = []
    for device in (GPU, torch.device("cpu")):
        params = [torch.nn.Parameter(torch.zeros_like(grad, device=device)) for grad in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(device, copy=True)
        norms = [fusedopt.get_total_norm([param.grad for param in params])]
        norms += [fusedopt.clip_grad_norm_(params, max_norm) for max_norm in (1e6, 1.0)]
        assert {norm.device.type for norm in norms} == {device.type}
        found.append([content(each) for each in (*norms, *(param.grad for param in params))])
    assert found[0] == found[1]
