"""Parameter groups and states: what may change between steps, and what a step makes of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_missing_gradient_skips_the_parameter(row):
    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = row.optimizer(params, weight_decay=0.1)
    params[0].grad = params[2].grad = torch.ones(3)
    version = params[1]._version
    for _ in range(3):
        optimizer.step()
    assert torch.equal(params[1], torch.ones(3))
    assert params[1]._version == version
    if row.name != "Adagrad":  # whose constructor creates all state, as torch's does
        assert params[1] not in optimizer.state
    params[1].grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state[params[1]]
    if "step" in state:
        assert state["step"].item() == 1
        assert optimizer.state[params[0]]["step"].item() == 4


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_groups_with_options_of_their_own(row):
    """A group steps as if it were alone, and groups may be added and changed in between."""
    options = [{"lr": 0.1}, {"lr": 0.01, "weight_decay": 0.5}, {"maximize": True}, {}]
    joint = [torch.nn.Parameter(torch.full((5,), float(i + 1))) for i in range(4)]
    alone = [torch.nn.Parameter(p.detach().clone()) for p in joint]
    optimizer = row.optimizer(
        [{"params": [p], **o} for p, o in zip(joint[:2], options[:2], strict=True)]
        + [{"params": []}]
    )
    for param, group in zip(joint[2:], options[2:], strict=True):
        optimizer.add_param_group({"params": param, **group})
    singles = [row.optimizer([p], **o) for p, o in zip(alone, options, strict=True)]
    for step in range(4):
        for p, q in zip(joint, alone, strict=True):
            p.grad = torch.linspace(-1, 1, 5) * (step + 1)
            q.grad = p.grad.clone()
        if step == 2:
            optimizer.param_groups[0]["lr"] = singles[0].param_groups[0]["lr"] = 0.03
        optimizer.step()
        for single in singles:
            single.step()
    for p, q in zip(joint, alone, strict=True):
        assert np.array_equal(bits(p), bits(q))


def test_state_may_be_replaced_between_steps():
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = fusedopt.SGD([param], lr=1.0, momentum=0.5)
    optimizer.step()
    optimizer.state[param] = {"momentum_buffer": torch.full((4,), 4.0)}
    optimizer.step()
    assert torch.equal(param, torch.full((4,), 0.0 - 3.0))
    optimizer.state.clear()
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.ones(4))
    optimizer.state[param]["momentum_buffer"] = None  # as old torch checkpoints have it
    optimizer.step()
    assert torch.equal(optimizer.state[param]["momentum_buffer"], torch.ones(4))


def test_states_are_found_in_any_order():
    params = [torch.nn.Parameter(torch.full((2,), float(i))) for i in range(6)]
    optimizer = fusedopt.SGD(params, lr=1.0, momentum=1.0)
    for i, param in enumerate(params):
        param.grad = torch.full((2,), float(i))
    optimizer.step()
    shuffled = {params[i]: optimizer.state[params[i]] for i in (3, 0, 5, 1, 4, 2)}
    shuffled["not a parameter"] = {"anything": 1}
    optimizer.state.clear()
    optimizer.state.update(shuffled)
    params[4].grad = None
    optimizer.step()
    for i, param in enumerate(params):
        expected = 2.0 if i not in (0, 4) else 1.0
        assert torch.equal(
            optimizer.state[param]["momentum_buffer"], expected * torch.full((2,), float(i))
        )


def test_options_switched_on_in_mid_training_get_their_state():
    param = torch.nn.Parameter(torch.ones(4))
    param.grad = torch.ones(4)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    assert torch.equal(
        optimizer.state[param]["max_exp_avg_sq"], optimizer.state[param]["exp_avg_sq"]
    )


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_tensor_learning_rate(row):
    results = []
    for lr in (0.25, torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25).double()):
        param = torch.nn.Parameter(torch.ones(4))
        param.grad = torch.linspace(-1, 1, 4)
        optimizer = row.optimizer([param], lr=lr)
        optimizer.step()
        if isinstance(lr, torch.Tensor):
            lr.fill_(0.5)
        else:
            optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        results.append(bits(param))
    assert all(np.array_equal(results[0], result) for result in results)


def test_learning_rate_that_requires_a_gradient_is_read_without_a_warning():
    """Its number counts, as in torch; warnings are errors here."""
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    fusedopt.SGD([param], lr=torch.tensor(0.5, requires_grad=True)).step()
    assert torch.equal(param.detach(), torch.full((3,), 0.5))


def test_tensor_betas():
    params = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    for param in params:
        param.grad = torch.linspace(-1, 1, 4)
    fusedopt.Adam(params[:1], betas=(torch.tensor(0.5), torch.tensor(0.75))).step()
    fusedopt.Adam(params[1:], betas=(0.5, 0.75)).step()
    assert np.array_equal(bits(params[0]), bits(params[1]))


def test_what_a_schedulers_rounding_leaves_of_zero():
    """LinearLR to 0 ends a little below it; torch carries on, and so must a drop-in."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = fusedopt.SGD([param], lr=0.1)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 0.0, total_iters=4)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert -1e-15 < optimizer.param_groups[0]["lr"] < 0


def test_default_dtype_of_the_step_count():
    torch.set_default_dtype(torch.float64)
    try:
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = fusedopt.Adam([param])
        optimizer.step()
        assert optimizer.state[param]["step"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_adagrad_group_added_later_starts_from_its_own_value():
    optimizer = fusedopt.Adagrad([torch.nn.Parameter(torch.ones(2))], initial_accumulator_value=0.5)
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late]})
    late.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(optimizer.state[late]["sum"], torch.full((2,), 1.5))
