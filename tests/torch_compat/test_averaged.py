"""averaged(): averages go into the parameters, and the parameters come back."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from averaging import (
    BF16,
    F16,
    F32,
    F64,
    PLACE,
    Parameters,
    all_bits,
    assert_bits,
    averages_of,
    every_row,
    stepped,
)

import fusedopt
from helpers import bits, parameter, run_python, snapshot


@every_row
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16])
def test_averages_go_in_and_parameters_come_back(row, dtype):
    model, optimizer = stepped(dtype, optimizer_class=row.optimizer, ema_decay=0.5)
    before = all_bits(model.parameters())
    averages = averages_of(model, optimizer)
    for _ in range(2):
        with optimizer.averaged():
            for param, average in zip(model.parameters(), averages, strict=True):
                assert torch.equal(param.detach(), average.to(dtype))
        assert_bits(model.parameters(), before)
    with contextlib.suppress(ZeroDivisionError), optimizer.averaged():
        raise ZeroDivisionError
    assert_bits(model.parameters(), before)
    model.take_gradients(5)
    optimizer.step()


def test_masters_come_back_whole():
    model, optimizer = stepped(BF16, ema_decay=0.5, master_weights=True)
    before = all_bits(optimizer.master_params())
    with optimizer.averaged():
        for param, average in zip(model.parameters(), averages_of(model, optimizer), strict=True):
            assert torch.equal(param.detach(), average.to(BF16))
        for forbidden in (
            optimizer.master_params,
            lambda: optimizer.load_master_params([p.detach() for p in model.parameters()]),
        ):
            with pytest.raises(RuntimeError, match=r"master_params\(\) inside averaged\(\)"):
                forbidden()
    assert_bits(optimizer.master_params(), before)


def test_what_training_must_not_do_inside():
    model, optimizer = stepped(ema_decay=0.5)
    before = all_bits(model.parameters())
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match=r"step\(\) inside averaged\(\).*leave_averaged\(\)"):
            optimizer.step()
        with pytest.raises(RuntimeError, match=r"copied or pickled inside averaged\(\)"):
            copy.deepcopy(optimizer)
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) inside averaged\(\)"):
            optimizer.load_state_dict(optimizer.state_dict())
        with pytest.raises(RuntimeError, match=r"add_param_group\(\) inside averaged\(\)"):
            optimizer.add_param_group({"params": []})
        with pytest.raises(RuntimeError, match=r"averaged\(\) is already active"):
            optimizer.averaged().__enter__()
    assert_bits(model.parameters(), before)
    optimizer.averaged().__enter__()
    optimizer.leave_averaged()
    optimizer.leave_averaged()  # nothing to do
    assert_bits(model.parameters(), before)


def test_a_closure_that_leaves_parameters_away():
    _, optimizer = stepped(ema_decay=0.5)
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) inside averaged\(\)"):
        optimizer.step(optimizer.averaged().__enter__)
    optimizer.leave_averaged()
    after = snapshot(optimizer)
    for place, entry in before.items():
        assert {**after[place], "version": entry["version"]} == entry


def test_only_the_first_of_two_enters():
    """As two threads would: the second comes while the first one prepares."""
    model, optimizer = stepped(ema_decay=0.5)
    before = all_bits(model.parameters())
    prepare, others = optimizer._prepare_averages, [optimizer.averaged()]

    def prepare_while_another_enters():
        if others:
            other = others.pop()
            other.__enter__()
        return prepare()

    optimizer._prepare_averages = prepare_while_another_enters
    with pytest.raises(RuntimeError, match="already active"):
        optimizer.averaged().__enter__()
    optimizer.leave_averaged()
    assert_bits(model.parameters(), before)


def test_what_only_looks_like_the_optimizer():
    """Lightning's wrapper has a class that is derived from the optimizer's."""
    _, optimizer = stepped(ema_decay=0.5)
    wrapper = object.__new__(type("Wrapper", (type(optimizer),), {}))
    with pytest.raises(RuntimeError, match=r"averaged\(\) is for the optimizer itself"):
        wrapper.averaged()


def test_averages_of_steps_long_ago_stay_where_they_are():
    model, optimizer = stepped(ema_decay=0.5)
    optimizer.param_groups[0]["ema_decay"] = None
    with pytest.raises(RuntimeError, match="no parameter group has ema_decay"):
        optimizer.averaged().__enter__()
    params = list(model.parameters())
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "ema_decay": 0.5})
    before = all_bits(params)
    with optimizer.averaged():
        assert_bits(params, before)


def test_parameters_that_do_not_fit_their_averages():
    model, optimizer = stepped(ema_decay=0.5)
    before = all_bits([model.each[0]])
    model.each[1].data = torch.zeros(1).expand(1000)
    with pytest.raises(RuntimeError, match=f"{PLACE}, parameter 1: the parameter has elements"):
        optimizer.averaged().__enter__()
    assert "_excursion" not in vars(optimizer)
    assert_bits([model.each[0]], before)


def test_a_parameter_of_another_dtype_is_not_put_back():
    model, optimizer = stepped(ema_decay=0.5)
    others = all_bits([model.each[0]])
    with (
        pytest.raises(RuntimeError, match=f"{PLACE}, parameter 1: .*another shape or dtype now"),
        optimizer.averaged(),
    ):
        model.each[1].data = model.each[1].data.bfloat16()
    assert_bits([model.each[0]], others)
    assert "_excursion" not in vars(optimizer)


def test_in_a_forked_child():
    """Where torch's operations on large tensors wait for threads that are not there."""
    code = """
import os, torch, fusedopt
param = torch.nn.Parameter(torch.ones(4_000_000))
optimizer = fusedopt.Nesterov([param], lr=0.1, ema_decay=0.5)
for _ in range(2):
    param.grad = torch.ones_like(param)
    optimizer.step()
context = optimizer.averaged()
context.__enter__()
child = os.fork()
if child == 0:
    context.__exit__(None, None, None)
    value = param[0].item()
    for enter in (optimizer.averaged, optimizer.at_iterate):
        with enter():
            assert param[0].item() != value
        assert param[0].item() == value
    os._exit(0)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run_python(code, timeout=60)


def test_two_ways_to_be_away():
    model, optimizer = stepped(optimizer_class=fusedopt.Nesterov, ema_decay=0.5)
    before = all_bits(model.parameters())
    with optimizer.averaged(), pytest.raises(RuntimeError, match=r"averaged\(\) is already active"):
        optimizer.at_iterate().__enter__()
    with optimizer.at_iterate(), pytest.raises(RuntimeError, match=r"at_iterate\(\) is already"):
        optimizer.averaged().__enter__()
    assert_bits(model.parameters(), before)


def test_without_averages():
    _, optimizer = stepped()
    with pytest.raises(RuntimeError, match="no parameter group has ema_decay"):
        optimizer.averaged().__enter__()
    model, optimizer = stepped(steps=0, ema_decay=0.5)
    before = all_bits(model.parameters())
    with optimizer.averaged():  # nothing has been averaged yet
        assert_bits(model.parameters(), before)


def test_some_with_averages_and_some_without():
    params = list(Parameters().parameters())
    optimizer = fusedopt.SGD([{"params": params[:1], "ema_decay": 0.5}, {"params": params[1:]}])
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    others = bits(params[1]).copy()
    with optimizer.averaged():
        assert torch.equal(params[0].detach(), optimizer.state[params[0]]["ema"])
        assert_bits(params[1:], [others])


def test_an_average_of_another_shape_moves_nothing():
    model, optimizer = stepped(ema_decay=0.5)
    before = all_bits(model.parameters())
    optimizer.state[model.each[1]]["ema"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=rf"{PLACE}, parameter 1: state 'ema' has shape \(1,\)"):
        optimizer.averaged().__enter__()
    assert_bits(model.parameters(), before)


def test_autograd_sees_that_parameters_move():
    model, optimizer = stepped(ema_decay=0.5)
    loss = model.each[0].square().sum()
    with optimizer.averaged(), pytest.raises(RuntimeError, match="modified by an inplace"):
        loss.backward()


def test_in_inference_mode():
    with torch.inference_mode():
        param = parameter(torch.ones(5))
        optimizer = fusedopt.SGD([param], lr=0.1, ema_decay=0.5)
        for _ in range(2):
            param.grad = torch.ones(5)
            optimizer.step()
        before = param.clone()
        with optimizer.averaged():
            assert torch.equal(param, optimizer.state[param]["ema"])
        assert torch.equal(param, before)


def test_evaluation_of_a_model_that_is_not_trained_further():
    model, optimizer = stepped(ema_decay=0.5)
    model.requires_grad_(False)
    with optimizer.averaged():
        assert torch.equal(model.each[0], optimizer.state[model.each[0]]["ema"])
