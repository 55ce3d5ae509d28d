"""Values that a formula must not stumble over, as torch's for-loop treats them; huge tensors."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import pytest
import torch

import fusedopt
from emulation import emulation
from fusedopt import reference
from fusedopt.checking.cases import CASES
from fusedopt.checking.verify import count_mismatches, to_array
from helpers import bits, scaled_step

INF, NAN = float("inf"), float("nan")
IN_TORCH = [case for case in CASES if case.row.torch_optimizer]


def steps_of(optimizer_class, dtype, lr, grads, options):
    param = torch.nn.Parameter(torch.linspace(-2, 2, grads.shape[1]).to(dtype))
    optimizer = optimizer_class([param], **{**options, "lr": lr})
    for grad in grads:
        param.grad = grad.to(dtype, copy=True)
        optimizer.step()
    state = {name: value for name, value in optimizer.state[param].items() if value is not None}
    return param.detach(), state


def assert_alike(ours, theirs, tolerance):
    """Not finite in the same places and the same way, and else equal but for rounding."""
    assert torch.equal(ours.isnan(), theirs.isnan())
    finite = theirs.isfinite()
    assert torch.equal(ours[~finite & ~theirs.isnan()], theirs[~finite & ~theirs.isnan()])
    assert torch.allclose(ours[finite], theirs[finite], rtol=tolerance, atol=tolerance)


# Ours rounds each scalar once and multiplies where torch divides: some ULP in a few steps.
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("lr", [0.0, 0.1])
@pytest.mark.parametrize("case", IN_TORCH, ids=str)
def test_infinite_and_nan_gradients_as_torch_treats_them(case, lr, dtype):
    # The square of 1e30 is infinite in float32; what then becomes of the centered RMSprop's
    # difference of squares depends in torch on whether its compiler fused a multiply-add.
    large = 1e18 if case.options.get("centered") else 1e30
    special = torch.tensor([INF, -INF, NAN, 0.0, -0.0, large, 1e-30, 5e-324, 1.0])
    ordinary = torch.linspace(-1, 1, len(special))
    grads = torch.stack([ordinary, special, special, ordinary, ordinary])
    ours, our_state = steps_of(case.row.optimizer, dtype, lr, grads, case.options)
    theirs, their_state = steps_of(
        case.row.torch_optimizer, dtype, lr, grads, {**case.options, "foreach": False}
    )
    assert_alike(ours, theirs, TOLERANCES[dtype])
    assert our_state.keys() == their_state.keys()
    for name, state in our_state.items():
        assert_alike(state, their_state[name], TOLERANCES[dtype])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_learning_rate_of_zero_leaves_parameters_but_not_states(case):
    """Except that a velocity which holds earlier steps still moves them, and lookahead points."""
    grads = torch.ones(3, 50)
    param, state = steps_of(case.row.optimizer, torch.float32, 0.0, grads, case.options)
    before = torch.linspace(-2, 2, 50)
    assert np.array_equal(bits(param), bits(before))
    for name, value in state.items():
        if name == "step":
            assert value.item() == 3
        elif name != "velocity":  # has the learning rate in it
            assert value.count_nonzero() > 0, name


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [INF, 1e300])
@pytest.mark.parametrize("engine", ["cpu", "emulated", "emulated, scaled"])
def test_a_momentum_of_infinity_copies_the_first_gradient(engine, momentum, nesterov):
    """And multiplies it later; 1e300 is infinite in float32."""
    options = {"lr": 0.5, "momentum": momentum, "nesterov": nesterov}
    param = torch.nn.Parameter(torch.linspace(-2, 2, 3))
    optimizer = fusedopt.SGD([param], **options)
    expected, state = param.detach().numpy().copy(), {}
    with contextlib.nullcontext() if engine == "cpu" else emulation():
        for grad in torch.tensor([[0.0, 1.0, -1.0], [1.0, 1.0, -1.0]]):
            param.grad = grad.clone()
            expected, state = reference.sgd(expected, grad.numpy(), state, **options)
            if engine == "emulated, scaled":
                scaled_step(optimizer, 1.0)
            else:
                optimizer.step()
            assert count_mismatches(to_array(param), expected) == 0
            found = to_array(optimizer.state[param]["momentum_buffer"])
            assert count_mismatches(found, state["momentum_buffer"]) == 0
    assert np.isfinite(state["momentum_buffer"]).sum() == 0


@pytest.mark.skipif(
    os.environ.get("FUSEDOPT_LARGE_TESTS") != "1",
    reason="needs 12 GB of memory: set FUSEDOPT_LARGE_TESTS=1",
)
@pytest.mark.parametrize("layout", ["one run", "strided"])
def test_more_than_2_to_the_31_elements(layout):
    """Every element, in pieces: indices, cuts and byte offsets go past 32 bits."""
    shape = (2**31 + 5,) if layout == "one run" else (2**16 + 1, 2**15 + 1)
    param = torch.nn.Parameter(torch.empty(shape, dtype=torch.bfloat16), requires_grad=False)
    grad = torch.empty(shape if layout == "one run" else shape[::-1], dtype=torch.bfloat16)
    param.grad = grad if layout == "one run" else grad.t()
    pattern = torch.arange(64, dtype=torch.bfloat16)
    for start in range(0, len(param), 2**16):
        rows = slice(start, start + 2**16)
        count = len(param[rows])
        values = pattern.repeat(count // 64 + 1)[:count]
        param[rows] = values if param.ndim == 1 else values[:, None]
        param.grad[rows] = 2 if param.ndim == 1 else torch.tensor(2.0)
    optimizer = fusedopt.SGD([param], lr=0.5)
    optimizer.step()
    for start in range(0, len(param), 2**16):
        found = param[start : start + 2**16]
        values = (pattern - 1).repeat(len(found) // 64 + 1)[: len(found)]
        assert torch.equal(found, values.view(-1, *[1] * (param.ndim - 1)).expand_as(found)), start
