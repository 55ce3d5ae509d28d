"""A step that measures its gradients is done as a whole or not at all."""

from __future__ import annotations

import math

import pytest
import torch

import fusedopt
from fusedopt.optimizers import clipping
from helpers import snapshot


def params_and_grads(sizes=(5, 3, 1000)):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size)) for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape)
    return params


def test_a_refused_step_changes_nothing_and_measures_nothing():
    params = params_and_grads()
    params[1].grad = torch.ones(3).to_sparse()
    optimizer = fusedopt.Adam(params, max_grad_norm=1.0)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: the gradient is sparse"):
        optimizer.step()
    assert snapshot(optimizer) == before
    assert optimizer.grad_norm is None


class Plain(torch.nn.Parameter):
    """A user's own class of parameters."""


def test_a_measurement_that_fails_changes_nothing(monkeypatch):
    """Where ranks are asked, before anything is written."""

    def fail(self, sums):
        raise KeyboardInterrupt

    monkeypatch.setattr(clipping.Measurement, "sum_of", lambda self, param: 1)
    monkeypatch.setattr(clipping.Measurement, "total", fail)
    params = [Plain(torch.ones(3)), Plain(torch.ones(3))]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = fusedopt.Adam(params, max_grad_norm=1.0)
    before = snapshot(optimizer)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert snapshot(optimizer) == before
    assert not optimizer.state


def test_memory_that_is_replaced_while_ranks_are_asked(monkeypatch):
    """What is stepped is what is there afterwards."""
    params = [Plain(torch.ones(3)), Plain(torch.ones(3))]
    for param in params:
        param.grad = torch.ones(3)

    def replace(self, sums):
        params[0].data = torch.full((3,), 5.0)
        return [sum(column) for column in zip(*sums, strict=True)]

    monkeypatch.setattr(clipping.Measurement, "sum_of", lambda self, param: 1)
    monkeypatch.setattr(clipping.Measurement, "total", replace)
    optimizer = fusedopt.SGD(params, lr=1.0, max_grad_norm=math.inf)
    optimizer.step()
    assert params[0].tolist() == [4.0] * 3
    assert params[1].tolist() == [0.0] * 3
    assert optimizer.grad_norm == math.sqrt(6)
