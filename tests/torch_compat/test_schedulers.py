"""Everything that changes an optimizer from outside: schedulers, averaging, options, groups."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits

TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]
each_row = pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)

LR = 0.02
STEPS = 14


def momentum_of(optimizer):
    """Whether there is a momentum that a scheduler can cycle."""
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


def sequential(o):
    warmup = lr_scheduler.LinearLR(o, 0.1, total_iters=4)
    decay = lr_scheduler.CosineAnnealingLR(o, 8)
    return lr_scheduler.SequentialLR(o, [warmup, decay], milestones=[4])


def chained(o):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.9)]
    )


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: (step + 1) ** -0.5),
    "LambdaLR warmup": lambda o: lr_scheduler.LambdaLR(
        o, lambda step: min((step + 1) ** -0.5, (step + 1) * 4**-1.5)
    ),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.1),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.25, total_iters=5),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 0.0, total_iters=STEPS),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
    "SequentialLR": sequential,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=10, power=2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8, eta_min=1e-4),
    "ChainedScheduler": chained,
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.5, patience=1),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, 0.1, step_size_up=3, cycle_momentum=momentum_of(o)
    ),
    "CyclicLR triangular2": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, 0.1, step_size_up=3, mode="triangular2", cycle_momentum=False
    ),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=STEPS + 1, cycle_momentum=momentum_of(o)
    ),
    "OneCycleLR three phases": lambda o: lr_scheduler.OneCycleLR(
        o, 0.1, total_steps=STEPS + 1, three_phase=True, cycle_momentum=False
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=5),
    "SWALR linear": lambda o: swa_utils.SWALR(o, 0.05, anneal_epochs=5, anneal_strategy="linear"),
}


def test_no_scheduler_of_torch_is_missing():
    classes = {
        name
        for name, value in inspect.getmembers(lr_scheduler, inspect.isclass)
        if issubclass(value, lr_scheduler.LRScheduler)
    }
    tried = {name.split()[0] for name in SCHEDULERS}
    assert classes - tried == {"LRScheduler", "_LRScheduler"}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 5), (70,), ())
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in shapes
    ]


def options_of(row):
    """A momentum, where there is one that is off by default."""
    return {"momentum": 0.9} if row.name in ("SGD", "RMSprop") else {}


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def take_step(optimizer, seed):
    """One step on gradients that follow from the seed; returns a loss that goes up and down."""
    generator = torch.Generator().manual_seed(seed)
    for param in params_of(optimizer):
        param.grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
    optimizer.step()
    return [3.0, 2.0, 2.0, 2.5, 1.0][seed % 5]


def both(row, **options):
    """Ours and torch's for-loop, on parameters of their own."""
    return [
        row.optimizer(parameters(), **copy.deepcopy(options)),
        row.torch_optimizer(parameters(), foreach=False, **copy.deepcopy(options)),
    ]


def scheduled(group):
    """What of a group a scheduler may have changed, tensors as numbers."""
    keys = ("lr", "initial_lr", "momentum", "betas", "swa_lr", "max_lr", "min_lr")
    return {
        key: value.item() if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key in keys
    }


def assert_close(ours, theirs):
    """The same formula in the same order in double: a few roundings a step."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SCHEDULERS)
@each_row
def test_every_scheduler(row, name):
    """The same learning rates, momenta and betas, as numbers, and trajectories that are close."""
    histories, optimizers = [], both(row, lr=LR, **options_of(row))
    for optimizer in optimizers:
        scheduler = SCHEDULERS[name](optimizer)
        history = [scheduled(optimizer.param_groups[0])]
        for step in range(STEPS):
            loss = take_step(optimizer, step)
            scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
            history.append((scheduled(optimizer.param_groups[0]), scheduler.get_last_lr()))
        histories.append(history)
    assert histories[0] == histories[1]
    assert len({repr(entry) for entry in histories[0]}) > 2
    assert_close(*optimizers)


@pytest.mark.parametrize("name", ["LambdaLR", "CosineAnnealingLR", "SequentialLR", "OneCycleLR"])
@each_row
def test_schedulers_of_a_learning_rate_that_is_a_tensor(row, name):
    """They write into the tensor, which is read at every step."""
    optimizers = both(row, lr=torch.tensor(LR, dtype=torch.float64), **options_of(row))
    for optimizer in optimizers:
        lr = optimizer.param_groups[0]["lr"]
        scheduler = SCHEDULERS[name](optimizer)
        for step in range(STEPS):
            take_step(optimizer, step)
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] is lr
    assert scheduled(optimizers[0].param_groups[0]) == scheduled(optimizers[1].param_groups[0])
    assert_close(*optimizers)


@each_row
def test_scheduler_is_resumed_with_the_optimizer(row):
    whole = row.optimizer(parameters(), lr=LR, **options_of(row))
    schedule = SCHEDULERS["OneCycleLR"](whole)
    for step in range(STEPS):
        if step == 6:
            resumed = row.optimizer(copy.deepcopy(params_of(whole)), **options_of(row))
            resumed_schedule = SCHEDULERS["OneCycleLR"](resumed)
            resumed_schedule.load_state_dict(schedule.state_dict())
            resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
        if step >= 6:
            take_step(resumed, step)
            resumed_schedule.step()
        take_step(whole, step)
        schedule.step()
    for p, q in zip(params_of(whole), params_of(resumed), strict=True):
        assert np.array_equal(bits(p), bits(q))


@each_row
def test_averaged_models(row):
    """Weights are averaged between the steps, equally and exponentially."""
    averages = []
    for optimizer_class in (row.optimizer, row.torch_optimizer):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3).double()
        optimizer = optimizer_class(model.parameters(), lr=LR)
        schedule = swa_utils.SWALR(optimizer, 0.05, anneal_epochs=4)
        equal = swa_utils.AveragedModel(model)
        moving = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))
        for step in range(8):
            take_step(optimizer, step)
            equal.update_parameters(model)
            moving.update_parameters(model)
            schedule.step()
        averages.append([*equal.parameters(), *moving.parameters()])
    for p, q in zip(*averages, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


CHANGES = {
    "lr": 0.3, "weight_decay": 0.2, "maximize": True, "eps": 1e-2, "betas": (0.5, 0.7),
    "momentum": 0.3, "dampening": 0.4, "rho": 0.5, "alpha": 0.5, "lr_decay": 0.1,
    "amsgrad": False, "nesterov": True, "decoupled_weight_decay": True,
}  # fmt: skip


@pytest.mark.parametrize("option", CHANGES)
@each_row
def test_options_changed_in_mid_training(row, option):
    if option not in row.torch_optimizer([torch.zeros(1)]).defaults:
        with pytest.raises(TypeError):
            row.optimizer(parameters(), **{option: CHANGES[option]})
        return
    more = {"amsgrad": True} if option == "amsgrad" else {}
    optimizers = both(row, lr=LR, **options_of(row), **more)
    unchanged = row.optimizer(parameters(), lr=LR, **options_of(row), **more)
    if option == "decoupled_weight_decay":
        for optimizer in (*optimizers, unchanged):
            optimizer.param_groups[0]["weight_decay"] = 0.1
    for step in range(6):
        for optimizer in optimizers:
            if step == 3:
                optimizer.param_groups[0][option] = CHANGES[option]
            take_step(optimizer, step)
        take_step(unchanged, step)
    assert_close(*optimizers)
    changed = not np.array_equal(bits(params_of(unchanged)[1]), bits(params_of(optimizers[0])[1]))
    assert changed == (optimizers[0].defaults[option] != CHANGES[option])


@each_row
def test_groups_added_later(row):
    """With options of their own; their step counts start from the beginning."""
    optimizers = both(row, lr=LR, **options_of(row))
    for optimizer in optimizers:
        schedule = SCHEDULERS["ExponentialLR"](optimizer)
        late = parameters(seed=1)
        for step in range(8):
            if step == 3:
                optimizer.add_param_group({"params": late[0], "lr": 0.5, "weight_decay": 0.1})
            if step == 5:
                optimizer.add_param_group({"params": late[1:], "maximize": True})
            take_step(optimizer, step)
            if step < 3:
                schedule.step()
    assert_close(*optimizers)
    for p, q in zip(*(params_of(o) for o in optimizers), strict=True):
        counts = [o.state[r].get("step") for o, r in zip(optimizers, (p, q), strict=True)]
        assert counts[0] == counts[1]


@each_row
def test_one_optimizer_a_parameter_in_the_backward_pass(row):
    """Each steps and frees its gradient as soon as that is there."""
    results = []
    for optimizer_class in (row.optimizer, row.torch_optimizer):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
        ).double()
        optimizers = {p: optimizer_class([p], lr=LR) for p in model.parameters()}

        def step(param, optimizers=optimizers):
            optimizers[param].step()
            optimizers[param].zero_grad()

        for param in model.parameters():
            param.register_post_accumulate_grad_hook(step)
        for i in range(5):
            inputs = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4) * (i + 1)
            model(inputs).square().mean().backward()
            assert all(param.grad is None for param in model.parameters())
        results.append(list(model.parameters()))
    for p, q in zip(*results, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@each_row
def test_zero_grad_both_ways(row, options):
    """With zeros a step is taken, which decays and moves on; with None it is not."""
    optimizer = row.optimizer(parameters(), weight_decay=0.5, **options)
    take_step(optimizer, 0)
    params = params_of(optimizer)
    grads = [param.grad for param in params]
    optimizer.zero_grad(set_to_none=False)
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)
    before = [bits(param).copy() for param in params]
    optimizer.step()
    assert not any(np.array_equal(bits(p), b) for p, b in zip(params, before, strict=True))
    optimizer.zero_grad()
    assert all(param.grad is None for param in params)
    before = [bits(param).copy() for param in params]
    optimizer.step()
    assert all(np.array_equal(bits(p), b) for p, b in zip(params, before, strict=True))


@each_row
def test_closure_that_steps_through_the_scheduled_step(row):
    """A scheduler's wrapper, a hook and a closure at once, each called once, as with torch."""
    results = []
    for optimizer in both(row, lr=LR):
        schedule = SCHEDULERS["ExponentialLR"](optimizer)
        calls = []
        optimizer.register_step_pre_hook(lambda *_, calls=calls: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append("post"))

        def closure(optimizer=optimizer, calls=calls):
            calls.append("closure")
            optimizer.zero_grad()
            loss = sum(param.square().sum() for param in params_of(optimizer))
            loss.backward()
            return loss

        losses = []
        for _ in range(4):
            losses.append(optimizer.step(closure).item())
            schedule.step()
        assert calls == ["pre", "closure", "post"] * 4
        results.append(losses)
    assert results[0] == pytest.approx(results[1], rel=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("scheduled_too", [False, True])
def test_profiler_event_of_every_class(row, scheduled_too):
    optimizer = row.optimizer(parameters())
    if scheduled_too:
        SCHEDULERS["ExponentialLR"](optimizer)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        take_step(optimizer, 0)
    names = [event.name for event in profile.events()]
    assert names.count(f"Optimizer.step#{row.name}.step") == 1


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.torch_optimizer], ids=lambda row: row.name
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_of_our_own_classes(row, name):
    """Momentum and Nesterov have no counterpart in torch: as with options set by hand."""
    scheduled_one, by_hand = (row.optimizer(parameters(), lr=LR) for _ in range(2))
    assert isinstance(by_hand, fusedopt.FusedOptimizer)
    scheduler = SCHEDULERS[name](scheduled_one)
    for step in range(STEPS):
        group = scheduled_one.param_groups[0]
        by_hand.param_groups[0].update(lr=group["lr"], momentum=group["momentum"])
        take_step(by_hand, step)
        loss = take_step(scheduled_one, step)
        scheduler.step(*([loss] if name == "ReduceLROnPlateau" else []))
    for p, q in zip(params_of(scheduled_one), params_of(by_hand), strict=True):
        assert np.array_equal(bits(p), bits(q))
