"""Tensors on the GPU that share memory, new states in used memory, options that are replaced."""

from __future__ import annotations

import math

import pytest
import torch

import fusedopt
from gpu_helpers import GPU, mismatches
from helpers import scaled_step, snapshot


def shared(optimizer_class=fusedopt.SGD, **options):
    params = [torch.nn.Parameter(torch.ones(5000, device=GPU)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones_like(param)
    return params, optimizer_class(params, **options)


def test_gradients_and_states_that_are_other_parameters():
    results = []
    for device in (GPU, "cpu"):
        generator = torch.Generator().manual_seed(0)
        a, b, c = (
            torch.nn.Parameter(torch.randn(70_000, generator=generator).to(device))
            for _ in range(3)
        )
        a.grad = torch.randn(70_000, generator=generator).to(device)
        b.grad, c.grad = a.detach(), a.grad
        optimizer = fusedopt.SGD([a, b, c], lr=0.5, momentum=0.5)
        for param, state in ((a, torch.zeros_like(a)), (b, torch.zeros_like(a)), (c, b.detach())):
            optimizer.state[param]["momentum_buffer"] = state
        for _ in range(3):
            optimizer.step()
        results.append(torch.stack([a, b, c]))
    assert mismatches(*results) == 0


def test_a_scaled_gradient_of_two_parameters_is_refused():
    params, optimizer = shared()
    params[2].grad = params[0].grad
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="parameter 2: the gradient shares memory with that of"):
        scaled_step(optimizer, 2.0)
    assert snapshot(optimizer) == before


def test_a_step_count_of_two_parameters_is_refused():
    params, optimizer = shared(fusedopt.Adam, capturable=True)
    optimizer.step()
    optimizer.state[params[2]]["step"] = optimizer.state[params[0]]["step"]
    with pytest.raises(ValueError, match="parameter 2: state 'step' shares memory with that of"):
        optimizer.step()


@pytest.mark.parametrize("scale", [None, 2.0])
def test_new_states_do_not_begin_with_what_their_memory_held(scale):
    results = []
    for device in (GPU, "cpu"):
        param = torch.nn.Parameter(torch.ones(100_000, device=device))
        param.grad = torch.ones_like(param)
        optimizer = fusedopt.Adam([param], amsgrad=True)
        used = [torch.full_like(param, math.nan) for _ in range(8)]
        del used  # to torch's allocator, which gives it out again
        for _ in range(2):
            scaled_step(optimizer, scale)
        results.append(param)
    assert mismatches(*results) == 0


def test_a_learning_rate_that_is_replaced_between_steps():
    """The kernel of a step may run when the tensor that it was given is no longer the group's."""
    params, optimizer = shared(lr=torch.tensor(0.5, device=GPU), capturable=True)
    for _ in range(200):
        optimizer.step()
        optimizer.param_groups[0]["lr"] = torch.tensor(0.5, device=GPU)
        torch.full((), math.nan, device=GPU)  # where the one before was
    assert all((param == 1 - 0.5 * 200).all() for param in params)
