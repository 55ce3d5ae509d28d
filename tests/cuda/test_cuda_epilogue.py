"""What follows a step in the CUDA engine, where the device may count, and know what is skipped.

The kernels' body on the CPU, and the whole engine on a stand-in for CUDA's runtime; the bits are
those of the CPU engine. ``test_cuda_groups.py`` has formats and layouts.
"""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulated, emulation
from fusedopt.checking.rows import ROWS
from helpers import bits, parameter, scaled_step
from stand_in import (
    ADAM,
    Training,
    each_policy,
    finish,
    fresh_device,
    native,
    readable,
    tensors,
)

SGD = next(row for row in ROWS if row.name == "SGD")
WAYS = [{"l1": 0.25}, {"ema_decay": 0.75}, {"ema_decay": 1}, {"ema_decay": 1, "l1": 0.25}]

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
every_way = pytest.mark.parametrize("options", WAYS, ids=str)
on_stand_in = pytest.mark.usefixtures(fresh_device.__name__)


def both(build, train):
    """What a training makes of an optimizer on either engine."""
    results = []
    for engine in (contextlib.nullcontext, emulation):
        torch.manual_seed(0)
        params = [parameter(torch.randn(size)) for size in (7, 1000, 0)]
        optimizer = build(params)
        with engine():
            train(optimizer, params)
        results.append((optimizer, params))
    return results


def assert_same(ours, theirs):
    (optimizer, params), (other, others) = ours, theirs
    for param, twin in zip(params, others, strict=True):
        assert np.array_equal(bits(param), bits(twin))
        states, expected = optimizer.state[param], other.state[twin]
        assert states.keys() == expected.keys()
        for name, state in expected.items():
            assert np.array_equal(bits(states[name]), bits(state)), name


@every_row
@every_way
@pytest.mark.parametrize("device_counts", [False, True])
def test_bits_of_the_cpu(row, options, device_counts):
    def train(optimizer, params):
        for step in range(4):
            for param in params:
                param.grad = torch.randn(param.shape)
            if device_counts:
                scaled_step(optimizer, 4.0, float(step == 2))
            else:
                optimizer.step()

    assert_same(*both(lambda params: row.optimizer(params, lr=0.1, **row.usual, **options), train))


@every_way
@pytest.mark.parametrize("row", [ADAM, SGD], ids=lambda row: row.name)
@pytest.mark.parametrize("by_scaler", [False, True])
def test_no_average_is_of_a_step_that_is_skipped(row, options, by_scaler):
    """The first is a copy of the parameter after the first step that counts, also where averages
    are asked for after other steps."""

    def train(optimizer, params):
        group = optimizer.param_groups[0]
        for step, scale in enumerate((1.0, math.nan, 1.0, math.inf, 1.0)):
            if step == 1:
                group.update(options)
            for param in params:
                param.grad = torch.randn(param.shape) * scale
            if by_scaler:
                scaled_step(optimizer, 2.0, float(not math.isfinite(scale)))
            else:
                optimizer.step()
            if step == 1:
                assert not any("ema" in states for states in optimizer.state.values())
            if step == 2 and "ema_decay" in options:
                assert all(torch.equal(optimizer.state[p]["ema"], p) for p in params)

    skips = {} if by_scaler else {"skip_nonfinite": True}
    assert_same(*both(lambda params: row.optimizer(params, lr=0.1, **skips), train))


def test_one_launch_of_the_kernel_for_any_formats():
    params = [parameter(torch.ones(size)) for size in (5, 8193)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = fusedopt.Adam([{"params": params[:1]}, {"params": params[1:], "l1": 0.1}])
    with emulation():
        launches = emulated.launches()
        optimizer.step()
        assert emulated.launches() == launches + 1
        assert emulated.blocks() == 3


def test_what_is_empty_is_counted_without_any_other():
    param = parameter(torch.empty(0))
    param.grad = torch.empty(0)
    optimizer = fusedopt.SGD([param], ema_decay=1)
    with emulation():
        for _ in range(3):
            scaled_step(optimizer, 2.0)
    assert optimizer.state[param]["ema_step"].item() == 3


# The engine


@each_policy
@every_way
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("row", [ADAM, SGD], ids=lambda row: row.name)
@on_stand_in
def test_steps_in_flight(row, capturable, options, policy, seed):
    native.schedule(policy, seed)
    values = tensors(30) + tensors(2, 9000, seed=1)
    training = Training(row, values, capturable=capturable, **options)
    for _ in range(20):
        training.step()
    finish()
    training.assert_same()


@each_policy
@every_way
@pytest.mark.parametrize("row", [ADAM, SGD], ids=lambda row: row.name)
@on_stand_in
def test_replays(row, options, policy, seed):
    """The kernel counts what the averages are of."""
    native.schedule(policy, seed)
    training = Training(row, tensors(20), capturable=True, **options)
    native.begin_capture(training.stream, "global")
    training.queue_step()
    graph = native.end_capture(training.stream)
    execution = native.graph_instantiate(graph)
    for n in range(10):
        training.upload_gradients(n % 5)
        native.graph_launch(execution, training.stream)
        training.step_twin(n % 5)
    finish()
    training.assert_same()
    if "ema_step" in training.optimizer.state[training.params[0]]:
        states = training.optimizer.state
        assert {readable(states[p]["ema_step"]).item() for p in training.params} == {11}
    native.exec_destroy(execution)
    native.graph_destroy(graph)


@on_stand_in
@pytest.mark.parametrize(
    ("capturable", "options", "message"),
    [
        (False, {"ema_decay": 1}, "for an instance of SGD but param_groups' capturable is False"),
        (True, {"ema_decay": 0.9}, "its state does not exist yet"),
    ],
)
def test_what_no_graph_can_capture(capturable, options, message):
    """A count on the host; an average that begins."""
    training = Training(SGD, tensors(3), capturable=capturable, **({} if capturable else options))
    training.optimizer.param_groups[0].update(options)
    native.begin_capture(training.stream, "global")
    with pytest.raises(RuntimeError, match=message):
        training.queue_step()
    native.forget_captures()
