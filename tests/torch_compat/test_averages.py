"""ema_decay and l1 beside torch: AveragedModel, checkpoints, refusals, and averaged()."""

from __future__ import annotations

import contextlib
import copy
import pickle

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedopt
from emulation import emulation
from fusedopt.checking.rows import ROWS
from helpers import bits, parameter, snapshot

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
PLACE = "parameter group 0"

every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


class Parameters(torch.nn.Module):
    """A model that is nothing but parameters."""

    def __init__(self, dtype=F32, sizes=(7, 1000)):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.each = torch.nn.ParameterList(
            torch.randn(size, generator=generator).to(dtype) for size in sizes
        )

    def take_gradients(self, seed):
        generator = torch.Generator().manual_seed(seed)
        for param in self.each:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def stepped(dtype=F32, steps=3, optimizer_class=fusedopt.AdamW, **options):
    model = Parameters(dtype)
    optimizer = optimizer_class(model.parameters(), **{"lr": 0.1, **options})
    for step in range(steps):
        model.take_gradients(step)
        optimizer.step()
    return model, optimizer


def averages_of(model, optimizer):
    return [optimizer.state[param]["ema"] for param in model.parameters()]


def all_bits(tensors):
    return [bits(tensor).copy() for tensor in tensors]


def assert_bits(tensors, expected):
    for tensor, value in zip(tensors, expected, strict=True):
        assert np.array_equal(bits(tensor), value)


# Beside torch


@every_row
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("decay", [0.4, 0.9, 0.999, 1])
def test_what_averaged_model_keeps(row, dtype, decay):
    """Of the same parameters.

    Both compute ``a + w (p - a)`` from the nearer end, torch perhaps with fused multiply-adds: they
    differ by three roundings of numbers up to 2 M a step, which later steps shrink by the decay.
    """
    steps = 50
    model = Parameters(dtype)
    optimizer = row.optimizer(model.parameters(), lr=row.lr, ema_decay=decay)
    multi_avg_fn = None if decay == 1 else get_ema_multi_avg_fn(decay)
    theirs = AveragedModel(model, multi_avg_fn=multi_avg_fn)
    largest = 0.0
    for step in range(steps):
        model.take_gradients(step)
        optimizer.step()
        theirs.update_parameters(model)
        largest = max(largest, *(param.abs().max().item() for param in model.parameters()))
    roundings = steps if decay == 1 else min(steps, 1 / (1 - decay))
    bound = 6 * roundings * largest * torch.finfo(dtype).eps / 2
    for ours, other in zip(averages_of(model, optimizer), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, other.detach(), rtol=0, atol=bound)
    with optimizer.averaged():
        for param, other in zip(model.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(param.detach(), other.detach(), rtol=0, atol=bound)


@pytest.mark.parametrize("zero_to_none", [True, False])
@pytest.mark.parametrize("row", [row for row in ROWS if row.torch_optimizer], ids=lambda r: r.name)
def test_the_whole_sequence_of_torch(row, zero_to_none):
    """Unscale, clip, step, average, zero, in float64: both differ by roundings of 1e-16 each."""
    models = [Parameters(F64), Parameters(F64)]
    options = {**row.usual, "lr": row.lr}
    ours = row.optimizer(models[0].parameters(), **options, max_grad_norm=2.0, ema_decay=0.9)
    theirs = row.torch_optimizer(models[1].parameters(), **options)
    averaged = AveragedModel(models[1], multi_avg_fn=get_ema_multi_avg_fn(0.9))
    scalers = [torch.amp.GradScaler("cpu", init_scale=256.0) for _ in models]
    for step in range(40):
        for model, optimizer, scaler in zip(models, (ours, theirs), scalers, strict=True):
            optimizer.zero_grad(set_to_none=zero_to_none)
            loss = sum((param.sin() * (step % 7) / 7).sum() for param in model.parameters())
            scaler.scale(loss).backward()
            if step in (0, 11):
                model.each[1].grad[3] = float("inf")
        scalers[0].step(ours)
        scalers[1].unscale_(theirs)
        torch.nn.utils.clip_grad_norm_(models[1].parameters(), 2.0)
        scalers[1].step(theirs)
        if step not in (0, 11):
            averaged.update_parameters(models[1])
        for scaler in scalers:
            scaler.update()
    assert scalers[0].get_scale() == scalers[1].get_scale()
    for param, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(param, other, rtol=1e-11, atol=1e-13)
    with ours.averaged():
        for param, other in zip(models[0].parameters(), averaged.parameters(), strict=True):
            torch.testing.assert_close(param.detach(), other.detach(), rtol=1e-11, atol=1e-13)


def test_a_parameter_that_gets_no_gradient_keeps_its_average():
    """Where AveragedModel takes it once more: a step of ours is a step of those with gradients."""
    model, optimizer = stepped(ema_decay=0.5)
    average = optimizer.state[model.each[0]]["ema"].clone()
    model.take_gradients(9)
    model.each[0].grad = None
    optimizer.step()
    assert torch.equal(optimizer.state[model.each[0]]["ema"], average)


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_checkpoints_of_torch_and_for_torch(dtype):
    model, optimizer = stepped(dtype, ema_decay=0.5, l1=0.01)
    theirs = torch.optim.AdamW(copy.deepcopy(model).parameters(), lr=0.1)
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ours = fusedopt.AdamW(copy.deepcopy(model).parameters(), lr=0.1, ema_decay=0.5)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    average = next(iter(ours.state.values()))["ema"]
    expected = averages_of(model, optimizer)[0]
    # torch casts what it loads to the parameter's dtype.
    assert torch.equal(average, expected.to(dtype).to(average.dtype))
    plain = torch.optim.AdamW(copy.deepcopy(model).parameters(), lr=0.1)
    twin = copy.deepcopy(model)
    late = fusedopt.AdamW(twin.parameters(), lr=0.1, ema_decay=0.5)
    late.load_state_dict(plain.state_dict())
    assert late.param_groups[0]["ema_decay"] == 0.5
    twin.take_gradients(0)
    late.step()
    assert torch.equal(averages_of(twin, late)[0], twin.each[0].detach().float())


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("decay", [0.5, 1])
def test_copies_pickles_and_checkpoints_keep_averages(dtype, decay):
    model, optimizer = stepped(dtype, ema_decay=decay)
    for other in (
        copy.deepcopy(optimizer),
        pickle.loads(pickle.dumps(optimizer)),
        fusedopt.AdamW(copy.deepcopy(model).parameters()),
    ):
        if not other.state:
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        states = [other.state[param] for param in other.param_groups[0]["params"]]
        assert_bits([state["ema"] for state in states], all_bits(averages_of(model, optimizer)))
        assert states[0]["ema"].dtype == F32
        assert other.param_groups[0]["ema_decay"] == decay
        if decay == 1:
            assert states[0]["ema_step"].item() == 3
            assert states[0]["ema_step"].dtype == F64


def test_options_are_keys_of_a_group_only_away_from_their_defaults():
    group = fusedopt.SGD(Parameters().parameters(), ema_decay=None, l1=0.0).param_groups[0]
    assert not {"ema_decay", "l1"} & group.keys()
    params = list(Parameters().parameters())
    optimizer = fusedopt.SGD([{"params": params[:1], "l1": 0.5}, {"params": params[1:]}], l1=0.1)
    assert [group["l1"] for group in optimizer.param_groups] == [0.5, 0.1]


# What is refused

OUT_OF_BOUNDS = [
    ({"l1": -0.1}, ValueError, r"invalid l1: -0.1 \(must be finite and at least 0\)"),
    ({"l1": float("inf")}, ValueError, r"invalid l1: inf"),
    ({"l1": float("nan")}, ValueError, r"invalid l1: nan"),
    ({"l1": "much"}, TypeError, r"invalid l1: 'much' \(must be a number\)"),
    ({"l1": None}, TypeError, r"invalid l1: None \(must be a number\)"),
    ({"ema_decay": -0.5}, ValueError, r"invalid ema_decay: -0.5 \(must be None, or at least 0"),
    ({"ema_decay": 1.5}, ValueError, r"invalid ema_decay: 1.5"),
    ({"ema_decay": float("nan")}, ValueError, r"invalid ema_decay: nan"),
    ({"ema_decay": [0.5]}, TypeError, r"invalid ema_decay: \[0.5\] \(must be a number\)"),
]


@pytest.mark.parametrize(("options", "exception", "message"), OUT_OF_BOUNDS)
def test_options_out_of_bounds(options, exception, message):
    params = list(Parameters().parameters())
    with pytest.raises(exception, match=f"{PLACE}: {message}"):
        fusedopt.Adam(params, **options)
    optimizer = fusedopt.Adam(params[:1])
    with pytest.raises(exception, match=f"parameter group 1: {message}"):
        optimizer.add_param_group({"params": params[1:], **options})
    assert len(optimizer.param_groups) == 1
    checkpoint = optimizer.state_dict()
    checkpoint["param_groups"][0].update(options)
    with pytest.raises(exception, match=f"{PLACE}: {message}"):
        optimizer.load_state_dict(checkpoint)
    _, optimizer = stepped()
    optimizer.param_groups[0].update(options)
    before = snapshot(optimizer)
    with pytest.raises(exception, match=f"{PLACE}: {message}"):
        optimizer.step()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize(
    ("state", "exception", "message"),
    [
        (
            {"ema": torch.zeros(7, dtype=BF16)},
            ValueError,
            "ema must be of dtype float32 or float64",
        ),
        ({"ema": torch.zeros(7, dtype=torch.uint8)}, ValueError, "ema must be of dtype float32"),
        ({"ema": torch.zeros(7, dtype=torch.int16)}, ValueError, "ema must be of dtype float32"),
        ({"ema": torch.zeros(6)}, RuntimeError, "ema"),
        ({"ema": 3.0}, TypeError, "state 'ema' must be a tensor"),
        ({"ema_step": torch.zeros(2)}, RuntimeError, "state 'ema_step' must be one number"),
        ({"ema_step": torch.tensor(-1.0)}, ValueError, "state 'ema_step' is not a count"),
        ({"ema_step": torch.tensor(0.5)}, ValueError, "state 'ema_step' is not a count"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"state_bits": 8}])
def test_states_that_are_no_averages(state, exception, message, options):
    model, optimizer = stepped(ema_decay=1, **options)
    optimizer.state[model.each[0]].update(state)
    before = snapshot(optimizer)
    with pytest.raises(exception, match=f"{PLACE}, parameter 0: .*{message}"):
        optimizer.step()
    assert snapshot(optimizer) == before


def test_an_average_that_shares_memory():
    model, optimizer = stepped(ema_decay=0.5)
    param = model.each[1]
    for other in (param.detach(), optimizer.state[param]["exp_avg"]):
        optimizer.state[param]["ema"] = other
        with pytest.raises(RuntimeError, match=f"{PLACE}, parameter 1: ema shares memory with"):
            optimizer.step()


@pytest.mark.parametrize("options", [{"l1": 0.1}, {"ema_decay": 0.9}])
def test_engines_that_cannot_say_so(options):
    model, optimizer = stepped(steps=0, **options)
    model.take_gradients(0)
    before = snapshot(optimizer)
    with (
        emulation(),
        pytest.raises(NotImplementedError, match=f"{PLACE}, parameter 0: l1 and ema_decay need"),
    ):
        optimizer.step()
    assert snapshot(optimizer) == before


# averaged()


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
        with pytest.raises(RuntimeError, match=r"averaged\(\) is already active"):
            optimizer.averaged().__enter__()
    assert_bits(model.parameters(), before)
    optimizer.averaged().__enter__()
    optimizer.leave_averaged()
    optimizer.leave_averaged()  # nothing to do
    assert_bits(model.parameters(), before)


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
