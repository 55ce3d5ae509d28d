"""A step that cannot be done raises torch's kind of exception, says where, and changes nothing."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch

import fusedopt
from emulation import emulation
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS
from helpers import scaled_step, snapshot

# Each makes one parameter of a group, or the group's options, such that a step is refused.


def spoil_grad(grad):
    def spoil(optimizer, group, param):
        # Behind .grad's own checks, as a hook or another library might.
        param.grad = None
        param.grad = grad(param)

    return spoil


def spoil_data(value):
    def spoil(optimizer, group, param):
        param.grad = None
        param.data = value(param)
        param.grad = torch.ones_like(param)

    return spoil


def spoil_data_below_grad(value):
    def spoil(optimizer, group, param):
        param.data = value(param)

    return spoil


def spoil_option(**options):
    def spoil(optimizer, group, param):
        group.update(options)

    return spoil


def spoil_state(name, value):
    def spoil(optimizer, group, param):
        optimizer.state[param][name] = value(optimizer.state[param].get(name))

    return spoil


def spoil_all_state(value):
    def spoil(optimizer, group, param):
        optimizer.state[param] = value

    return spoil


def remove_state(name):
    def spoil(optimizer, group, param):
        del optimizer.state[param][name]

    return spoil


def remove_option(name):
    def spoil(optimizer, group, param):
        del group[name]

    return spoil


def list_it_twice(optimizer, group, param):
    optimizer.param_groups[1]["params"].append(param)


def spoil_own_state_with_grad(optimizer, group, param):
    optimizer.state[param]["exp_avg"] = param.grad


def fail_to_create_state(optimizer, group, param):
    create = optimizer._create_state

    def create_or_fail(name, of, group):
        if of is param:
            raise MemoryError("no memory for it")
        return create(name, of, group)

    optimizer._create_state = create_or_fail


HERE, GROUP = "HERE", "GROUP"  # where the spoiled parameter is

REFUSALS = {
    "sparse gradient": (spoil_grad(lambda p: torch.ones_like(p).to_sparse()), RuntimeError,
                        f"{HERE}.*gradient is sparse"),
    "gradient of another shape": (spoil_data_below_grad(lambda p: torch.ones(5, 4)), RuntimeError,
                                  f"{HERE}.*gradient has shape"),
    "overlapping parameter": (spoil_data(lambda p: torch.ones(1).expand(p.shape)), RuntimeError,
                              f"{HERE}.*share memory"),
    "complex parameter": (spoil_data(lambda p: p.to(torch.cfloat)), RuntimeError,
                          f"{HERE}.*complex"),
    "the same parameter twice": (list_it_twice, ValueError, "is also parameter"),
    "negative lr": (spoil_option(lr=-1.0), ValueError, f"{GROUP}: invalid lr: -1.0"),
    "NaN lr": (spoil_option(lr=float("nan")), ValueError, f"{GROUP}: invalid lr: nan"),
    "negative tensor lr": (spoil_option(lr=torch.tensor(-1.0)), ValueError,
                           f"{GROUP}: invalid lr"),
    "lr of the wrong type": (spoil_option(lr="fast"), TypeError, f"{GROUP}: invalid lr: 'fast'"),
    "lr of two elements": (spoil_option(lr=torch.ones(2)), ValueError, f"{GROUP}: invalid lr"),
    "lr missing": (remove_option("lr"), KeyError, f"{GROUP}: option 'lr' is missing"),
    "flag missing": (remove_option("amsgrad"), KeyError, f"{GROUP}: option 'amsgrad' is missing"),
    "flag neither true nor false": (spoil_option(maximize=torch.ones(2)), RuntimeError,
                                    "Boolean value of Tensor"),
    "beta of 1": (spoil_option(betas=(0.9, 1.0)), ValueError,
                  rf"{GROUP}: invalid betas\[1\]: 1.0"),
    "negative beta": (spoil_option(betas=(-0.1, 0.9)), ValueError,
                      rf"{GROUP}: invalid betas\[0\]: -0.1"),
    "one beta": (spoil_option(betas=(0.9,)), ValueError,
                 rf"{GROUP}: invalid betas: \(0.9,\) \(must be 2 numbers\)"),
    "three betas": (spoil_option(betas=[0.9, 0.99, 0.999]), ValueError,
                    rf"{GROUP}: invalid betas: \[0.9, 0.99, 0.999\] \(must be 2 numbers\)"),
    "betas a number": (spoil_option(betas=0.9), TypeError, f"{GROUP}: invalid betas: 0.9"),
    "betas a tensor of three": (spoil_option(betas=torch.ones(3) / 2), ValueError,
                                rf"{GROUP}: invalid betas: tensor"),
    "negative eps": (spoil_option(eps=-1e-8), ValueError, f"{GROUP}: invalid eps"),
    "negative weight decay": (spoil_option(weight_decay=-0.1), ValueError,
                              f"{GROUP}: invalid weight_decay"),
    "capturable on the CPU": (spoil_option(capturable=True), AssertionError,
                              f"{GROUP}, parameter 0.*capturable"),
    "differentiable": (spoil_option(differentiable=True), NotImplementedError,
                       f"{GROUP}: differentiable=True is not supported"),
    "params missing": (remove_option("params"), KeyError, f"{GROUP}: key 'params' is missing"),
    "state not a dict": (spoil_all_state([1]), TypeError, f"{HERE}: its state must be a dict"),
    "state of another shape": (spoil_state("exp_avg", lambda s: torch.zeros(3)), RuntimeError,
                               rf"{HERE}: exp_avg has shape \(3,\)"),
    "state negated": (spoil_state("exp_avg", torch._neg_view), ValueError,
                      f"{HERE}: exp_avg is a negated view"),
    "state of integers": (spoil_state("exp_avg", lambda s: s.int()), RuntimeError,
                          f"{HERE}: exp_avg has an unsupported dtype"),
    "state on another device": (spoil_state("exp_avg", lambda s: s.to("meta")),
                                (RuntimeError, NotImplementedError), f"{HERE}: exp_avg"),
    "state sparse": (spoil_state("exp_avg", lambda s: s.to_sparse()), RuntimeError,
                     f"{HERE}: exp_avg is sparse"),
    "state not a tensor": (spoil_state("exp_avg_sq", lambda s: 0.0), TypeError,
                           f"{HERE}: state 'exp_avg_sq' must be a tensor"),
    "state overlapping": (spoil_state("exp_avg", lambda s: torch.zeros(1).expand(s.shape)),
                          RuntimeError, f"{HERE}: exp_avg has elements that share memory"),
    "state missing": (remove_state("exp_avg"), KeyError, f"{HERE}: its state has no 'exp_avg'"),
    "step missing": (remove_state("step"), KeyError, f"{HERE}: its state has no 'step'"),
    "step a vector": (spoil_state("step", lambda s: torch.zeros(2)), RuntimeError,
                      f"{HERE}: state 'step' must be one number"),
    "step negative": (spoil_state("step", lambda s: torch.tensor(-1.0)), ValueError,
                      f"{HERE}: state 'step' is not a count"),
    "step a fraction": (spoil_state("step", lambda s: torch.tensor(1.5)), ValueError,
                        f"{HERE}: state 'step' is not a count"),
    "step NaN": (spoil_state("step", lambda s: torch.tensor(float("nan"))), ValueError,
                 f"{HERE}: state 'step' is not a count"),
    "gradient that is the parameter": (spoil_grad(lambda p: p.detach()), RuntimeError,
                                       f"{HERE}: the gradient shares memory with the parameter"),
    "two states in one": (lambda optimizer, group, param: optimizer.state[param].update(
                              exp_avg=optimizer.state[param]["exp_avg_sq"]), RuntimeError,
                          f"{HERE}: exp_avg_sq shares memory with exp_avg"),
    "state that is the gradient": (spoil_own_state_with_grad, RuntimeError,
                                   f"{HERE}: exp_avg shares memory with the gradient"),
    "state that is the parameter": (lambda optimizer, group, param: optimizer.state[param].update(
                                        exp_avg=param.detach()), RuntimeError,
                                    f"{HERE}: exp_avg shares memory with the parameter"),
    "step of booleans": (spoil_state("step", lambda s: torch.tensor(True)), ValueError,
                         f"{HERE}: state 'step' is not a count"),
    "no memory for a state": (fail_to_create_state, MemoryError, "no memory for it"),
}  # fmt: skip

WITH_STATE = {name for name in REFUSALS if name.startswith(("state", "step", "two states"))}
WITHOUT_STATE = {"no memory for a state"}
# What a GPU can do, and what of its memory the host cannot look into.
ACCEPTED = {
    "emulated": {"capturable on the CPU"},
    "emulated, scaled": {"capturable on the CPU", "step negative", "step a fraction", "step NaN"},
}


def two_groups(optimizer_class=fusedopt.Adam, steps=2, **options):
    torch.manual_seed(0)
    groups = [{"params": [torch.nn.Parameter(torch.randn(4, 5)) for _ in range(4)]}
              for _ in range(2)]  # fmt: skip
    optimizer = optimizer_class(groups, **options)
    for _ in range(steps):
        for group in groups:
            for param in group["params"]:
                param.grad = torch.randn(4, 5)
        optimizer.step()
    return optimizer


def steps_before(name):
    """Before the first step there is no state to spoil, and after it none is created."""
    return (2,) if name in WITH_STATE else (0,) if name in WITHOUT_STATE else (0, 2)


TRIALS = [(name, steps) for name in REFUSALS for steps in steps_before(name)]
ENGINES = ("cpu", "cpu, scaled", "emulated", "emulated, scaled")
FIRST, MIDDLE, LAST = (0, 0), (1, 2), (1, 3)


@pytest.mark.parametrize("position", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("name", "steps"), TRIALS)
def test_refused_step_changes_nothing(name, steps, engine, position):
    """Whichever parameter it is for, and whoever would carry it out."""
    spoil, exception, message = REFUSALS[name]
    optimizer = two_groups(steps=steps)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones(4, 5)
    group = optimizer.param_groups[position[0]]
    spoil(optimizer, group, group["params"][position[1]])
    where = f"parameter group {position[0]}"
    message = message.replace(HERE, f"{where}, parameter {position[1]}").replace(GROUP, where)
    before = snapshot(optimizer)
    step = functools.partial(scaled_step, optimizer, 2.0) if "scaled" in engine else optimizer.step
    with emulation() if "emulated" in engine else contextlib.nullcontext():
        if name in ACCEPTED.get(engine, ()):
            step()
            return
        with pytest.raises(exception, match=message):
            step()
    assert snapshot(optimizer) == before
    assert len(optimizer.state) == (8 if steps else 0)


@pytest.mark.parametrize("position", [FIRST, MIDDLE, LAST], ids=["first", "middle", "last"])
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("bad", ["shares memory", "is negated"])
def test_gradient_that_cannot_be_unscaled_in_place_changes_nothing(bad, steps, position):
    """Dividing a copy would leave the gradient scaled, and say nothing."""
    for engine in (contextlib.nullcontext(), emulation()):
        optimizer = two_groups(steps=steps)
        for group in optimizer.param_groups:
            for param in group["params"]:
                param.grad = torch.ones(4, 5)
        grad = torch.ones(5).expand(4, 5) if bad == "shares memory" else torch.ones(4, 5)
        param = optimizer.param_groups[position[0]]["params"][position[1]]
        param.grad = torch._neg_view(grad) if bad == "is negated" else grad
        before = snapshot(optimizer)
        message = rf"group {position[0]}, parameter {position[1]}: .*unscaled in place"
        with engine, pytest.raises(RuntimeError, match=message):
            scaled_step(optimizer, 2.0)
        assert snapshot(optimizer) == before


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_optimizer_refuses_before_it_writes(row):
    """The last of all parameters is the bad one; state is new, so none may be left behind."""
    options = max((c.options for c in CASES if c.row is row), key=len)
    optimizer = two_groups(row.optimizer, steps=0, **options)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.ones(4, 5)
    bad = optimizer.param_groups[1]["params"][3]
    bad.grad = torch.ones(4, 5).to_sparse()
    before = snapshot(optimizer)
    with pytest.raises(
        RuntimeError, match="parameter group 1, parameter 3: the gradient is sparse"
    ):
        optimizer.step()
    assert snapshot(optimizer) == before
    bad.grad = torch.ones(4, 5)
    optimizer.step()
    assert snapshot(optimizer) != before


def test_an_exception_of_the_users_own_is_preserved():
    class Rate:
        def __float__(self):
            raise InterruptedError("mine")

    optimizer = two_groups(steps=1)
    optimizer.param_groups[1]["lr"] = Rate()
    before = snapshot(optimizer)
    with pytest.raises(InterruptedError, match="mine"):
        optimizer.step()
    assert snapshot(optimizer) == before
