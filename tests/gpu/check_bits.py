"""On the GPU every case has the CPU's bits: 0 mismatches, compared as integers."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.stored import STORAGES, verify_storage
from fusedopt.checking.verify import CUDA, gradients
from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    Flat,
    assert_same,
    gradient_steps,
    mismatches,
    mixed_tensors,
    optimizer_on,
    params_of,
    step_all,
    twins,
)

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
STEPS = 30
COMPARED = (1, 2, 3, 10, 20, STEPS)

# Around packs of 16 bytes and around the elements of a thread block's chunk in every dtype.
_PACKS = range(34)
_CHUNKS = [chunk + near for chunk in (2048, 4096, 8192) for near in (-1, 0, 1)]

# Size, then shift of the parameter and of the gradient from 16 bytes, in elements. States begin at
# a multiple of 16 bytes.
PLACES = [
    *((size, *shifts) for shifts in ((0, 0), (1, 1), (1, 0), (0, 3)) for size in _PACKS),
    *((size, *shifts) for shifts in ((0, 0), (3, 2)) for size in _CHUNKS),
    (100_003, 0, 0),
    (50_021, 5, 2),
]
SIZES, PARAM_SHIFTS, GRAD_SHIFTS = zip(*PLACES, strict=True)


@functools.cache
def gradient_memory(dtype):
    """What the gradients' memory holds at every step."""
    generator = np.random.default_rng(0)
    size = Flat(SIZES, GRAD_SHIFTS, dtype, "cpu").memory.numel()
    return [gradients(size, dtype, generator) for _ in range(STEPS)]


class Side:
    """A case on one device, whose parameters and gradients lie in two pieces of memory."""

    def __init__(self, case, dtype, device, **more):
        self.params = Flat(SIZES, PARAM_SHIFTS, dtype, device)
        self.grads = Flat(SIZES, GRAD_SHIFTS, dtype, device)
        generator = np.random.default_rng(1)
        params = []
        for value, grad in zip(self.params.views, self.grads.views, strict=True):
            value.copy_(torch.from_numpy(generator.standard_normal(value.numel())))
            params.append(torch.nn.Parameter(value))
            params[-1].grad = grad
        self.optimizer = case.row.optimizer(params, **{**case.options, **more})

    def step(self, memory):
        self.grads.memory.copy_(memory)
        self.optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_cpu(case, dtype):
    """With scalars derived on the CPU and, where capturable, on the GPU."""
    cpu = Side(case, dtype, "cpu")
    on_gpu = {name: Side(case, dtype, GPU, capturable=name == "capturable")
              for name in ("plain", "capturable")}  # fmt: skip
    for step, memory in enumerate(gradient_memory(dtype), start=1):
        for side in (cpu, *on_gpu.values()):
            side.step(memory)
        if step not in COMPARED:
            continue
        for name, gpu in on_gpu.items():
            assert_same(gpu.optimizer, cpu.optimizer, f"{name}, step {step}")
            # The guard values between the parameters, too.
            assert mismatches(gpu.params.memory, cpu.params.memory) == 0
            assert mismatches(gpu.grads.memory, memory) == 0


@pytest.mark.parametrize("storage", STORAGES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference_in_fewer_bytes(case, storage):
    """With scalars derived on the CPU and on the GPU, by turns."""
    turn = CASES.index(case) + STORAGES.index(storage)
    options = {**case.options, "capturable": turn % 2 == 1}
    (result,) = verify_storage(replace(case, options=options), storage, [CUDA], [1], steps=3)
    assert result.elements > 0
    assert result.mismatches == 0, result.first_mismatch


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_capturable_keeps_step_counts_on_the_gpu(row):
    case = next(case for case in CASES if case.row is row)
    for capturable, device in ((False, "cpu"), (True, "cuda")):
        optimizer = optimizer_on(GPU, case, [torch.randn(5)], capturable=capturable)
        optimizer.step()
        state = optimizer.state[params_of(optimizer)[0]]
        if "step" in state:
            assert state["step"].device.type == device
            assert state["step"].dtype == torch.float32
            assert state["step"].shape == ()


@pytest.mark.parametrize("count", [1, 2, 39, 40, 41, 299, 300, 301, 399, 400, 401, 600, 3000])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_any_number_of_tensors(count, capturable):
    """Around the sizes at which the table of tensors moves from one place to another."""
    case = next(c for c in CASES if c.options.get("amsgrad") and c.row.name == "Adam")
    torch.manual_seed(0)
    tensors = [torch.randn(1 + 13 * i % 97).to(DTYPES[i % 4]) for i in range(count)]
    gpu, cpu = twins(case, tensors, capturable=capturable)
    for grads in gradient_steps(tensors, 4):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)


def test_many_tensors_of_many_chunks():
    case = next(c for c in CASES if c.row.name == "RMSprop" and c.options.get("centered"))
    torch.manual_seed(0)
    tensors = [torch.randn(1 + (i * 7919) % 20_011) for i in range(700)]
    gpu, cpu = twins(case, tensors)
    for grads in gradient_steps(tensors, 2):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_all_options_and_dtypes_in_one_step(row, capturable):
    tensors = mixed_tensors()
    optimizers = []
    for device, flag in ((GPU, capturable), ("cpu", False)):
        groups = []
        for options in row.options:
            params = [torch.nn.Parameter(tensor.to(device, copy=True)) for tensor in tensors]
            for param in params:
                param.grad = torch.zeros_like(param)
            groups.append({"params": params, **options, "capturable": flag})
        optimizers.append(row.optimizer(groups))
    for grads in gradient_steps(tensors * len(row.options), 10):
        step_all(grads, *optimizers)
    assert_same(*optimizers)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_learning_rate_on_the_gpu(case, capturable):
    """Read by the kernel at every step, in any dtype that holds it."""
    tensors = mixed_tensors()
    for dtype in (torch.float32, torch.float64):
        lr = torch.tensor(0.05, dtype=dtype)
        gpu = optimizer_on(GPU, case, tensors, lr=lr.to(GPU), capturable=capturable)
        cpu = optimizer_on("cpu", case, tensors, lr=lr)
        for step, grads in enumerate(gradient_steps(tensors, 6)):
            step_all(grads, gpu, cpu)
            gpu.param_groups[0]["lr"].fill_(0.05 / (step + 2))
            lr.fill_(0.05 / (step + 2))
        assert_same(gpu, cpu, str(dtype))


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_betas_on_the_gpu(name, capturable):
    case = next(case for case in CASES if case.row.name == name and case.options)
    tensors = mixed_tensors()
    betas = torch.tensor(0.75), torch.tensor(0.9375)
    on_gpu = tuple(beta.to(GPU) for beta in betas)
    gpu = optimizer_on(GPU, case, tensors, betas=on_gpu, capturable=capturable)
    cpu = optimizer_on("cpu", case, tensors, betas=betas)
    for grads in gradient_steps(tensors, 6):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)


def test_weight_decay_on_the_gpu():
    case = next(case for case in CASES if case.row.name == "SGD" and case.options.get("nesterov"))
    tensors = mixed_tensors()
    decay = torch.tensor(0.125)
    gpu = optimizer_on(GPU, case, tensors, weight_decay=decay.to(GPU))
    cpu = optimizer_on("cpu", case, tensors, weight_decay=decay)
    for grads in gradient_steps(tensors, 6):
        step_all(grads, gpu, cpu)
    assert_same(gpu, cpu)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_16_bit_conversions_of_every_value(dtype):
    """Every one of the 65,536 values, unchanged by lr 0 and rounded as on the CPU by lr 0.5."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
    generator = torch.Generator().manual_seed(0)
    for lr in (0.0, 0.5):
        grad = values[torch.randperm(values.numel(), generator=generator)]
        results = []
        for device in (GPU, "cpu"):
            param = torch.nn.Parameter(values.to(device, copy=True))
            param.grad = grad.to(device)
            fusedopt.SGD([param], lr=lr).step()
            results.append(param)
        assert mismatches(*results) == 0


def test_a_step_changes_every_element():
    for case in (case for case in CASES if not case.options):
        for dtype in DTYPES:
            param = torch.nn.Parameter(torch.zeros(30_001, dtype=dtype, device=GPU))
            param.grad = torch.ones_like(param)
            case.row.optimizer([param], lr=0.5).step()
            assert (param != 0).all(), (case, dtype)


def test_missing_gradients_and_step_counts_of_their_own():
    case = next(case for case in CASES if case.row.name == "Adam")
    for capturable in (False, True):
        tensors = [torch.randn(10) for _ in range(3)]
        gpu, cpu = twins(case, tensors, capturable=capturable)
        for step, grads in enumerate(gradient_steps(tensors, 5)):
            for optimizer in (gpu, cpu):
                for index, param in enumerate(params_of(optimizer)):
                    param.grad = grads[index].to(param.device) if step >= index else None
                optimizer.step()
        assert_same(gpu, cpu)
        counts = [gpu.state[param]["step"].item() for param in params_of(gpu)]
        assert counts == [5, 4, 3]


def test_at_iterate_on_the_gpu():
    case = next(case for case in CASES if case.row.name == "Nesterov")
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors)
    for grads in gradient_steps(tensors, 3):
        step_all(grads, gpu, cpu)
    with gpu.at_iterate(), cpu.at_iterate():
        assert_same(gpu, cpu, "inside")
    assert_same(gpu, cpu, "after")
