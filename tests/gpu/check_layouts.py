"""Memory layouts on the GPU: any pairing has the CPU's bits, no byte outside a view is written."""

from __future__ import annotations

import itertools

import pytest
import torch

import fusedopt
from bits.test_layouts import LAYOUTS, SHAPE
from fusedopt.checking.cases import CASES, DTYPES
from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    assert_same,
    gradient_steps,
    mismatches,
    params_of,
    step_all,
    twins,
)
from helpers import Guarded


def make(layout, values):
    """The values on the GPU in a layout, and the memory that they lie in."""
    stride, memory = LAYOUTS[layout]
    guarded = Guarded(memory, values.dtype, device=GPU)
    view = guarded.view(SHAPE, stride)
    view.copy_(values)
    return guarded, view


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_every_pairing_of_parameter_and_gradient(case, dtype):
    pairings = list(itertools.product(LAYOUTS, repeat=2))
    torch.manual_seed(0)
    values = [torch.randn(SHAPE).to(dtype) for _ in pairings]
    gpu, cpu = twins(case, values)
    memories, grads = [], []
    for param, value, (layout, _) in zip(params_of(gpu), values, pairings, strict=True):
        memory, param.data = make(layout, value)
        memories.append(memory)
    for step in gradient_steps(values, 4):
        for optimizer in (gpu, cpu):
            for param in params_of(optimizer):
                param.grad = None
        for mine, theirs, grad, (_, layout) in zip(
            params_of(gpu), params_of(cpu), step, pairings, strict=True
        ):
            memory, mine.grad = make(layout, grad)
            grads.append((memory, mine.grad, grad))
            theirs.grad = grad
        gpu.step()
        cpu.step()
    assert_same(gpu, cpu)
    for memory in memories:
        memory.assert_untouched()
    for memory, grad, expected in grads:
        memory.assert_untouched()
        assert mismatches(grad, expected) == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_states_of_another_layout(case, layout):
    torch.manual_seed(0)
    values = [torch.randn(SHAPE)]
    gpu, cpu = twins(case, values)
    first, *others = gradient_steps(values, 4)
    step_all(first, gpu, cpu)
    state = gpu.state[params_of(gpu)[0]]
    memories = []
    for name in [name for name, value in state.items() if value.shape == SHAPE]:
        memory, state[name] = make(layout, state[name])
        memories.append(memory)
    for grads in others:
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)
    for memory in memories:
        memory.assert_untouched()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_states_at_odd_places(dtype):
    """Parameter, gradient and states all at different distances from a multiple of 16 bytes."""
    case = next(case for case in CASES if case.options.get("amsgrad"))
    for size in (1, 7, 8, 9, 33, 4097, 20_001):
        torch.manual_seed(0)
        values = [torch.randn(size).to(dtype)]
        gpu, cpu = twins(case, values)
        first, *others = gradient_steps(values, 3)
        step_all(first, gpu, cpu)
        state = gpu.state[params_of(gpu)[0]]
        memories = []
        for shift, name in enumerate(n for n, value in state.items() if value.shape == (size,)):
            memory = Guarded(size + 8, dtype, device=GPU)
            view = memory.view((size,), (1,), shift)
            view.copy_(state[name])
            state[name] = view
            memories.append(memory)
        for grads in others:
            step_all(grads, gpu, cpu)
        assert_same(gpu, cpu, f"size {size}")
        for memory in memories:
            memory.assert_untouched()


def test_large_strided_tensor():
    torch.manual_seed(0)
    values = torch.randn(1031, 307)
    memory = Guarded(1031 * 307 * 3, torch.float32, device=GPU)
    view = memory.view((1031, 307), (3, 1031 * 3))
    view.copy_(values)
    case = next(case for case in CASES if case.row.name == "Adam")
    gpu, cpu = twins(case, [values])
    (param,) = params_of(gpu)
    param.grad, param.data = None, view
    param.grad = torch.zeros(307, 1031, device=GPU).t()
    for grads in gradient_steps([values], 3):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)
    memory.assert_untouched()


GRADIENTS = {
    "scalar": lambda d: torch.ones(1, device=d).expand(8, 9),
    "row": lambda d: torch.arange(9.0, device=d).expand(8, 9),
    "column": lambda d: torch.arange(8.0, device=d).view(8, 1).expand(8, 9),
    "negated": lambda d: torch._neg_view(torch.arange(72.0, device=d).view(8, 9)),
    "imaginary": lambda d: torch.full((8, 9), 1 + 2j, device=d).conj().imag,
    "transposed": lambda d: torch.arange(72.0, device=d).view(9, 8).t(),
    "sliced": lambda d: torch.arange(288.0, device=d).view(16, 18)[::2, ::2],
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_every_kind(name):
    case = next(case for case in CASES if case.row.name == "Adam")
    torch.manual_seed(0)
    gpu, cpu = twins(case, [torch.randn(8, 9)])
    for optimizer in (gpu, cpu):
        (param,) = params_of(optimizer)
        param.grad = GRADIENTS[name](param.device)
        optimizer.step()
    assert_same(gpu, cpu)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_scalar_and_empty_parameters(shape, capturable):
    for case in LARGEST_CASES:
        torch.manual_seed(0)
        tensors = [torch.randn(shape)]
        gpu, cpu = twins(case, tensors, capturable=capturable)
        for grads in gradient_steps(tensors, 3):
            step_all(grads, gpu, cpu)
        assert_same(gpu, cpu, str(case))


def test_a_step_without_any_gradient_does_nothing():
    for case in LARGEST_CASES:
        optimizer = case.row.optimizer([torch.nn.Parameter(torch.ones(3, device=GPU))])
        optimizer.step()
        assert torch.equal(params_of(optimizer)[0].cpu(), torch.ones(3))


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_parameters_on_the_cpu_and_on_the_gpu_in_one_optimizer(case):
    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in (5, 4099, 17, 70_001)]
    _, expected = twins(case, tensors)
    places = (GPU, "cpu", "cpu", GPU)
    params = [
        torch.nn.Parameter(tensor.to(place, copy=True))
        for tensor, place in zip(tensors, places, strict=True)
    ]
    for param in params:
        param.grad = torch.zeros_like(param)
    mixed = case.row.optimizer(params, **case.options)
    for grads in gradient_steps(tensors, 5):
        step_all(grads, mixed, expected)
    assert_same(mixed, expected)
    for param in params:
        for name, value in mixed.state[param].items():
            assert name == "step" or value.device == param.device


def test_parameters_that_share_memory_are_stepped_in_order():
    results = []
    for device in (GPU, "cpu"):
        generator = torch.Generator().manual_seed(0)
        buffer = torch.randn(300_000, generator=generator).to(device)
        params = [
            torch.nn.Parameter(buffer[50_000:250_000]),
            torch.nn.Parameter(buffer),
            torch.nn.Parameter(buffer.view(1000, 300)[:, 7]),
            torch.nn.Parameter(torch.randn(5, generator=generator).to(device)),
            torch.nn.Parameter(buffer),
        ]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(device)
        optimizer = fusedopt.SGD(params, lr=0.3, weight_decay=0.1, momentum=0.9)
        for _ in range(3):
            optimizer.step()
        results.append(buffer)
    assert mismatches(*results) == 0


def test_views_of_one_flat_buffer():
    flat = torch.randn(1000, device=GPU)
    expected = flat.clone()
    bounds = [0, 1, 17, 300, 301, 999, 1000]
    params = [torch.nn.Parameter(flat[a:b]) for a, b in itertools.pairwise(bounds)]
    for param in params:
        param.grad = torch.ones_like(param)
    fusedopt.SGD(params, lr=0.25).step()
    assert torch.equal(flat, expected - 0.25)


def test_swapped_data_is_read_afresh():
    param = torch.nn.Parameter(torch.ones(5, device=GPU))
    param.grad = torch.ones_like(param)
    optimizer = fusedopt.SGD([param], lr=0.5)
    optimizer.step()
    param.data = torch.full((5,), 7.0, device=GPU)
    optimizer.step()
    assert torch.equal(param.cpu(), torch.full((5,), 6.5))


def test_autograd_notices_the_update():
    param = torch.nn.Parameter(torch.ones(3, device=GPU))
    param.grad = torch.ones_like(param)
    version = param._version
    out = (param * param).sum()
    fusedopt.Adam([param]).step()
    assert param._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()
