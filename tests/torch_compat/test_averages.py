"""ema_decay and l1 beside torch: AveragedModel, checkpoints, refusals, and averaged()."""

from __future__ import annotations

import copy
import pickle

import numpy as np
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
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fusedopt
from forked import run_python
from fusedopt.checking.rows import ROWS
from helpers import snapshot

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
    assert average.dtype == F32
    assert torch.equal(average, expected.to(dtype).float())
    for param in ours.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    ours.step()
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


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("how", ["from_torch", "without the option"])
def test_averages_that_others_have_had_are_wide_again(dtype, how):
    model, optimizer = stepped(dtype, ema_decay=1)
    if how == "from_torch":
        other = torch.optim.AdamW(model.parameters(), lr=0.1)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer = fusedopt.from_torch(other)
    else:
        optimizer.param_groups[0]["ema_decay"] = None
        checkpoint = copy.deepcopy(optimizer.state_dict())
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1)
        optimizer.load_state_dict(checkpoint)
        optimizer.param_groups[0]["ema_decay"] = 1
    for step in range(2):
        model.take_gradients(step)
        optimizer.step()
    state = optimizer.state[model.each[0]]
    assert (state["ema"].dtype, state["ema_step"].dtype) == (F32, F64)
    assert state["ema_step"].item() == 5


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
    ({"ema_decay": True}, ValueError, r"invalid ema_decay: True"),
    ({"l1": np.array([0.5, 0.5])}, TypeError, r"invalid l1: array"),
    ({"ema_decay": torch.tensor([0.5, 0.5])}, ValueError, r"invalid ema_decay: tensor"),
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


def test_counts_that_are_dtensors():
    run_python("""if True:
        import torch, fusedopt
        from torch.distributed.tensor import DeviceMesh, Replicate, distribute_tensor

        torch.distributed.init_process_group(
            "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        mesh = DeviceMesh("cpu", [0])
        for optimizer_class in (fusedopt.SGD, fusedopt.Adam):
            param = torch.nn.Parameter(torch.ones(3))
            param.grad = torch.ones(3)
            optimizer = optimizer_class([param], ema_decay=1)
            optimizer.step()
            states = optimizer.state[param]
            for name in {"step", "ema_step"} & states.keys():
                states[name] = distribute_tensor(states[name], mesh, [Replicate()])
            optimizer.step()
            assert states["ema_step"].item() == 2
        torch.distributed.destroy_process_group()
    """)
