"""Dispatch modes, transforms and forward AD: a step is seen by them, or refused."""

from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits, snapshot

# torch's forward AD scripts its formulas when it is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def prepared(row, steps=1, **options):
    params = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.full((2, 2), 2.0))]
    optimizer = row.optimizer(params, **options)
    for step in range(steps + 1):
        for param in params:
            param.grad = torch.full_like(param, step + 1.0)
        if step < steps:
            optimizer.step()
    return params, optimizer


class Mode(TorchDispatchMode):
    """Notes what it sees, and carries it out so many times."""

    def __init__(self, times=1):
        super().__init__()
        self.times, self.seen, self.last = times, [], None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        self.last = func, args
        for _ in range(self.times if func.namespace == "fusedopt" else 1):
            result = func(*args, **(kwargs or {}))
        return result if self.times else None


STEP = ["fusedopt.step_.default"]


@each_row
@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_mode_decides_on_the_step(row, before, times):
    params, optimizer = prepared(row, before)
    _, twin = prepared(row, before)
    with Mode(times) as mode:
        optimizer.step()
    assert mode.seen == STEP
    for _ in range(times):
        twin.step()
    assert snapshot(optimizer) == snapshot(twin)
    _, (seen_params, seen_grads) = mode.last
    assert [p.data_ptr() for p in seen_params] == [p.data_ptr() for p in params]
    assert [g.data_ptr() for g in seen_grads] == [p.grad.data_ptr() for p in params]


def test_modes_inside_each_other():
    _, optimizer = prepared(ROWS[0])
    _, twin = prepared(ROWS[0])
    with Mode() as outer, FlopCounterMode(display=False), Mode() as inner:
        optimizer.step()
    twin.step()
    assert outer.seen == inner.seen == STEP
    assert snapshot(optimizer) == snapshot(twin)


def test_the_operation_of_a_step_that_is_over():
    _, optimizer = prepared(ROWS[0])
    with Mode(times=0) as mode:
        optimizer.step()
    func, args = mode.last
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="part of an optimizer's step, which is over"):
        func(*args)
    assert snapshot(optimizer) == before


def test_no_gradient_no_operation():
    optimizer = fusedopt.SGD([torch.nn.Parameter(torch.ones(3))])
    with Mode() as mode:
        optimizer.step()
    assert mode.seen == []


def test_what_a_step_refuses_is_refused_under_a_mode():
    params, optimizer = prepared(ROWS[0])
    params[1].grad = torch.ones(2, 2).to_sparse()
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 1: the gradient is sparse"), Mode():
        optimizer.step()
    assert snapshot(optimizer) == before
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError, match="group 0: invalid lr"), Mode():
        optimizer.step()
    assert snapshot(optimizer) == before


def test_what_a_mode_raises():
    class Raising(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise KeyboardInterrupt

    _, optimizer = prepared(ROWS[0])
    _, twin = prepared(ROWS[0])
    before = snapshot(optimizer)
    with pytest.raises(KeyboardInterrupt), Raising():
        optimizer.step()
    assert snapshot(optimizer) == before
    with Mode():
        optimizer.step()
    twin.step()
    assert snapshot(optimizer) == snapshot(twin)


def test_classes_of_the_users_own_and_negated_gradients_under_a_mode():
    class Own(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            assert "fusedopt" not in str(func)
            return super().__torch_function__(func, types, args, kwargs)

    results = []
    for mode in (Mode(), torch.no_grad()):
        param = torch.ones(3).as_subclass(Own)
        param.grad = torch._neg_view(torch.ones(3))
        optimizer = fusedopt.SGD([param], lr=0.5)
        with mode:
            optimizer.step()
        results.append(bits(param.as_subclass(torch.Tensor)))
    assert np.array_equal(*results)


def test_closures_and_scalers_under_a_mode():
    _, optimizer = prepared(ROWS[0])
    _, twin = prepared(ROWS[0])
    for each in (optimizer, twin):
        each.grad_scale, each.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    with Mode() as mode:
        assert optimizer.step(lambda: 42.0) == 42.0
    twin.step()
    assert mode.seen == STEP
    assert snapshot(optimizer) == snapshot(twin)


def test_a_mode_is_of_its_thread():
    params, optimizer = prepared(ROWS[0])
    with Mode() as mode:
        thread = threading.Thread(target=optimizer.step)
        thread.start()
        thread.join()
    assert mode.seen == []
    assert not torch.equal(params[0].detach(), torch.ones(3))


@each_row
def test_what_is_faked_or_traced_is_refused(row):
    _, optimizer = prepared(row)
    before = snapshot(optimizer)

    def step(x):
        optimizer.step()
        return x * 2

    with pytest.raises(RuntimeError, match="under FakeTensorMode"), FakeTensorMode():
        optimizer.step()
    with pytest.raises(RuntimeError, match="under FakeTensorMode"), FakeTensorMode(), Mode():
        optimizer.step()
    for kind in ("real", "fake", "symbolic"):
        with pytest.raises(RuntimeError, match=r"under \w+Mode"):
            make_fx(step, tracing_mode=kind)(torch.ones(3))
    assert snapshot(optimizer) == before


TRANSFORMS = {
    "grad": lambda f: torch.func.grad(f)(torch.ones(3)),
    "vjp": lambda f: torch.func.vjp(f, torch.ones(3)),
    "jvp": lambda f: torch.func.jvp(f, (torch.ones(3),), (torch.ones(3),)),
    "vmap of grad": lambda f: torch.func.vmap(torch.func.grad(f))(torch.ones(2, 3)),
    "grad of vmap": lambda f: torch.func.grad(
        lambda x: torch.func.vmap(lambda y: f(y) + 0 * y.sum())(x).sum())(torch.ones(2, 3)),
    "vmap": lambda f: torch.func.vmap(f)(torch.ones(2, 3)),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_refused_where_torch_refuses(name):
    results = []
    for module in (torch.optim, fusedopt):
        param = torch.nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        optimizer = module.SGD([param], lr=0.5)

        def loss(x, optimizer=optimizer):
            optimizer.step()
            return (x * 2).sum()

        message = None
        try:
            TRANSFORMS[name](loss)
        except RuntimeError as error:
            message = str(error)
        results.append((message is None, bits(param).tolist()))
    assert message is None or "inside torch.func.grad, vjp or jvp" in message
    assert results[0] == results[1]


def dual(tensor):
    return forward_ad.make_dual(tensor.detach(), torch.ones_like(tensor))


def dual_parameter(optimizer):
    param = dual(optimizer.param_groups[0]["params"].pop())
    param.grad = torch.ones(2, 2)
    optimizer.param_groups[0]["params"].append(param)


def dual_gradient(optimizer):
    param = optimizer.param_groups[0]["params"][1]
    param.grad = dual(param.grad)


def dual_state(optimizer):
    state = optimizer.state[optimizer.param_groups[0]["params"][1]]
    state["exp_avg"] = dual(state["exp_avg"])


def dual_option(optimizer):
    optimizer.param_groups[0]["lr"] = dual(torch.tensor(0.5))


def dual_beta(optimizer):
    optimizer.param_groups[0]["betas"] = (0.9, dual(torch.tensor(0.5)))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (dual_parameter, "group 0, parameter 1: the parameter"),
        (dual_gradient, "group 0, parameter 1: the gradient"),
        (dual_state, "group 0, parameter 1: state 'exp_avg'"),
        (dual_option, "group 0: lr"),
        (dual_beta, "group 0: betas"),
    ],
)
def test_a_tangent_is_refused(spoil, what):
    _, optimizer = prepared(next(row for row in ROWS if row.name == "Adam"))
    with forward_ad.dual_level():
        spoil(optimizer)
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match=f"{what} has a tangent"):
            optimizer.step()
        assert snapshot(optimizer) == before


@each_row
def test_without_tangents_a_step_is_a_step(row):
    _, optimizer = prepared(row)
    _, twin = prepared(row)
    with forward_ad.dual_level():
        left = dual(torch.ones(3))
        optimizer.add_param_group({"params": [left]})  # has no gradient
        optimizer.step()
        assert forward_ad.unpack_dual(left).tangent is not None
        optimizer.param_groups.pop()
        optimizer.state.pop(left, None)
    twin.step()
    assert snapshot(optimizer) == snapshot(twin)


def test_the_way_to_the_iterate():
    params, optimizer = prepared(next(row for row in ROWS if row.name == "Nesterov"))
    for param in params:
        param.grad = None
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="under FakeTensorMode"), FakeTensorMode():
        optimizer.at_iterate().__enter__()
    with pytest.raises(RuntimeError, match=r"inside torch.func.grad"):
        torch.func.grad(lambda x: optimizer.at_iterate().__enter__() or x.sum())(torch.ones(3))
    with forward_ad.dual_level():
        velocity = optimizer.state[params[1]]["velocity"]
        optimizer.state[params[1]]["velocity"] = dual(velocity)
        with pytest.raises(RuntimeError, match="parameter 1: state 'velocity' has a tangent"):
            optimizer.at_iterate().__enter__()
        optimizer.state[params[1]]["velocity"] = velocity
    assert snapshot(optimizer) == before
    with Mode(), optimizer.at_iterate():
        moved = copy.deepcopy(params[0])
    assert not torch.equal(moved, params[0])


def test_left_under_a_fake_mode():
    """What was saved is there when the mode is gone."""
    params, optimizer = prepared(next(row for row in ROWS if row.name == "Nesterov"))
    before = [bits(param).copy() for param in params]
    context = optimizer.at_iterate()
    context.__enter__()
    message = "group 0, parameter 0: cannot be put back"
    with pytest.raises(RuntimeError, match=message), FakeTensorMode():
        context.__exit__(None, None, None)
    optimizer.leave_iterate()
    assert all(np.array_equal(bits(p), b) for p, b in zip(params, before, strict=True))
