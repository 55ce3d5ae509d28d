"""A tensor whose elements are more than 32 bits can count. Takes about 14 GB."""

from __future__ import annotations

import torch

import fusedopt
from gpu_helpers import GPU, mismatches

ELEMENTS = 2**31 + 5
# The values repeat after so many elements, so that the CPU steps one period only.
PERIOD = 2**16
REST = ELEMENTS % PERIOD


def filled(period):
    """A tensor on the GPU that repeats a period to its end."""
    period = period.to(GPU)
    tensor = torch.empty(ELEMENTS, dtype=period.dtype, device=GPU)
    tensor[: ELEMENTS - REST].view(-1, PERIOD).copy_(period)
    tensor[ELEMENTS - REST :].copy_(period[:REST])
    return tensor


def differing(tensor, period):
    """Elements that are not those of the period, counted in pieces that need little memory."""
    expected = period.to(GPU)
    rows = tensor[: ELEMENTS - REST].view(-1, PERIOD)
    wrong = sum(int((part != expected).sum()) for part in rows.split(2048))
    return wrong + mismatches(tensor[ELEMENTS - REST :], period[:REST])


def test_more_than_two_to_the_31_elements():
    free, _ = torch.cuda.mem_get_info()
    assert free > 15e9, "this check needs 15 GB of free GPU memory"
    generator = torch.Generator().manual_seed(0)
    period, grad = (torch.randn(PERIOD, generator=generator).bfloat16() for _ in range(2))
    expected = torch.nn.Parameter(period.clone())
    expected.grad = grad
    param = torch.nn.Parameter(filled(period))
    param.grad = filled(grad)
    optimizers = [fusedopt.SGD([p], lr=0.5, momentum=0.75) for p in (param, expected)]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.step()
    assert differing(param.detach(), expected.detach()) == 0
    buffers = [
        optimizer.state[p]["momentum_buffer"]
        for optimizer, p in zip(optimizers, (param, expected), strict=True)
    ]
    assert differing(*buffers) == 0
    assert differing(param.grad, grad) == 0


def test_more_than_two_to_the_31_elements_apart():
    """A small parameter of large strides: offsets in memory need 64 bits, too."""
    step = 2**30 + 1
    memory = torch.zeros(2 * step + 8, dtype=torch.float16, device=GPU)
    param = torch.nn.Parameter(memory.as_strided((3, 4), (step, 2)))
    param.grad = torch.arange(1.0, 13.0, device=GPU).view(3, 4).half()
    fusedopt.SGD([param], lr=1.0).step()
    assert torch.equal(param.cpu().float(), -torch.arange(1.0, 13.0).view(3, 4))
    assert int((memory != 0).sum()) == 12
