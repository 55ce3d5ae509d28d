"""Momentum and Nesterov: the textbook recursions, and the way to the iterate and back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import fusedopt
from helpers import bits


def quadratic():
    """An ill-conditioned bowl and where to start in it."""
    scale = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    start = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    return lambda x: 0.5 * (scale * x * x).sum(), start


def gradient(loss, point):
    point = point.clone().requires_grad_()
    loss(point).backward()
    return point.grad


RATES = [0.1, 0.1, 0.02, 0.02, 0.05]


def test_momentum_is_the_textbook_recursion():
    loss, x = quadratic()
    param = torch.nn.Parameter(x.clone())
    optimizer = fusedopt.Momentum([param], momentum=0.8)
    v = torch.zeros_like(x)
    for lr in RATES * 4:
        v = 0.8 * v - lr * gradient(loss, x)
        x = x + v
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss(param).backward()
        optimizer.step()
        torch.testing.assert_close(param.detach(), x, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(optimizer.state[param]["velocity"], v, rtol=1e-12, atol=1e-14)


def test_nesterov_is_the_textbook_recursion():
    loss, x = quadratic()
    param = torch.nn.Parameter(x.clone())
    optimizer = fusedopt.Nesterov([param], momentum=0.8)
    v = torch.zeros_like(x)
    for lr in RATES * 4:
        v = 0.8 * v - lr * gradient(loss, x + 0.8 * v)
        x = x + v
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        loss(param).backward()
        optimizer.step()
        torch.testing.assert_close(param.detach(), x + 0.8 * v, rtol=1e-12, atol=1e-14)
        with optimizer.at_iterate():
            torch.testing.assert_close(param.detach(), x, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("ours", "nesterov"), [(fusedopt.Momentum, False), (fusedopt.Nesterov, True)]
)
def test_same_as_sgd_until_the_learning_rate_changes(ours, nesterov):
    loss, x = quadratic()
    params = [torch.nn.Parameter(x.clone()) for _ in range(2)]
    optimizers = [
        ours(params[:1], lr=0.1, momentum=0.8),
        torch.optim.SGD(params[1:], lr=0.1, momentum=0.8, nesterov=nesterov),
    ]

    def step():
        for param, optimizer in zip(params, optimizers, strict=True):
            optimizer.zero_grad()
            loss(param).backward()
            optimizer.step()

    for _ in range(10):
        step()
    torch.testing.assert_close(*params, rtol=1e-12, atol=1e-14)
    for optimizer in optimizers:
        optimizer.param_groups[0]["lr"] = 0.01
    step()
    assert not torch.allclose(*params, rtol=1e-3)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_at_iterate_restores_every_bit(dtype):
    torch.manual_seed(0)
    params = [
        torch.nn.Parameter(torch.randn(9, 7).to(dtype).t()),
        torch.nn.Parameter(torch.randn(5).to(dtype)),
    ]
    untouched = torch.nn.Parameter(torch.randn(3).to(dtype))
    optimizer = fusedopt.Nesterov(
        [{"params": params}, {"params": [untouched], "momentum": 0.5}], lr=0.1
    )
    with optimizer.at_iterate():  # no step yet: lookahead point and iterate are the same
        pass
    for _ in range(3):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    before = [bits(p).copy() for p in (*params, untouched)]
    velocities = [optimizer.state[p]["velocity"] for p in params]
    expected = [
        (p.detach().double() - 0.9 * v.double()).to(dtype)
        for p, v in zip(params, velocities, strict=True)
    ]

    def evaluate_and_fail():
        for param, value in zip(params, expected, strict=True):
            torch.testing.assert_close(param.detach(), value)
        assert np.array_equal(bits(untouched), before[2])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), optimizer.at_iterate():
        evaluate_and_fail()
    for param, value in zip((*params, untouched), before, strict=True):
        assert np.array_equal(bits(param), value)
    assert all(param.grad is not None for param in params)


def test_training_goes_on_as_if_never_evaluated():
    results = []
    for evaluate in (False, True):
        loss, x = quadratic()
        param = torch.nn.Parameter(x.float())
        optimizer = fusedopt.Nesterov([param], lr=0.1)
        for _ in range(20):
            optimizer.zero_grad()
            loss(param).backward()
            optimizer.step()
            if evaluate:
                with optimizer.at_iterate(), torch.no_grad():
                    loss(param)
        results.append(bits(param))
    assert np.array_equal(*results)


def test_step_and_second_entry_inside_at_iterate_raise():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = fusedopt.Nesterov([param], lr=0.1)
    optimizer.step()
    with optimizer.at_iterate():
        before = bits(param).copy()
        with pytest.raises(RuntimeError, match="inside at_iterate"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="already active"), optimizer.at_iterate():
            pass
        assert np.array_equal(bits(param), before)
    optimizer.step()


def test_iterate_of_a_copy():
    """What a user does to save the iterate: copy the model inside the context."""
    model = torch.nn.Linear(3, 1)
    optimizer = fusedopt.Nesterov(model.parameters(), lr=0.1, momentum=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    with optimizer.at_iterate():
        saved = copy.deepcopy(model.state_dict())
    expected = model.weight - 0.5 * optimizer.state[model.weight]["velocity"]
    torch.testing.assert_close(saved["weight"], expected.detach())


@pytest.mark.parametrize("momentum", [fusedopt.Momentum, fusedopt.Nesterov])
def test_docstring_explains_the_difference_to_sgd(momentum):
    assert "learning rate changes" in momentum.__doc__


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"lr": torch.ones(2)}]
)
def test_constructor_refuses(options):
    with pytest.raises(ValueError, match=r"Invalid|1-element"):
        fusedopt.Momentum([torch.nn.Parameter(torch.ones(1))], **options)
