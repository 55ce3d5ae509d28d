"""Python code that runs in the midst of a step, and groups that are not what torch makes them."""

from __future__ import annotations

import collections
import gc
import sys

import pytest
import torch

import fusedopt
from helpers import snapshot


def tensors(count=1, size=3):
    params = [torch.nn.Parameter(torch.ones(size)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones(size)
    return params


# Code that frees or replaces what a step works on


class Meddling(torch.Tensor):
    """A tensor whose attribute, which a step looks for, runs code."""

    meddle = staticmethod(lambda: None)

    @property
    def trigger_wait(self):
        type(self).meddle()
        raise AttributeError


@pytest.mark.parametrize("where", ["param", "grad", "state", "step"])
def test_memory_that_code_replaces_is_not_written(where, monkeypatch):
    """64 MB, whose pages are gone when they are freed: a write would end the process."""
    size = 16 << 20
    first = torch.nn.Parameter(torch.ones(size))
    second = torch.ones(2)
    if where == "param":
        second = second.as_subclass(Meddling)
    first.grad, second.grad = torch.ones(size), torch.ones(2)
    optimizer = fusedopt.Adam([first, second], lr=0.5)
    optimizer.step()
    states = optimizer.state[second]
    if where == "grad":
        second.grad = second.grad.as_subclass(Meddling)
    elif where != "param":
        name = {"state": "exp_avg", "step": "step"}[where]
        states[name] = states[name].as_subclass(Meddling)

    def replace():
        first.data, first.grad = torch.full((5,), 7.0), torch.ones(5)
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[first][name].data = torch.zeros(5)

    monkeypatch.setattr(Meddling, "meddle", staticmethod(replace))
    # The gradient was collected before it was replaced, and is of another shape now.
    with pytest.raises(RuntimeError, match="parameter 0: the gradient has shape"):
        optimizer.step()
    assert first.tolist() == [7.0] * 5


class Rate:
    """A number whose conversion runs code."""

    def __init__(self, code, value=0.5):
        self.code, self.value = code, value

    def __float__(self):
        self.code()
        return self.value


def test_an_option_that_frees_itself():
    (param,) = tensors()
    optimizer = fusedopt.SGD([param])
    group = optimizer.param_groups[0]

    def free():
        group["lr"] = 0.0
        gc.collect()

    for value, refused in ((-1.0, True), (0.5, False)):
        group["lr"] = Rate(free, value)
        if refused:
            with pytest.raises(ValueError, match=r"invalid lr: <.*Rate object"):
                optimizer.step()
        else:
            optimizer.step()
    assert param.tolist() == [0.5] * 3


def test_an_option_in_a_sequence_that_is_freed_with_it():
    (param,) = tensors()
    optimizer = fusedopt.Adam([param])
    group = optimizer.param_groups[0]

    def free():
        group["betas"] = (0.0, 0.0)
        gc.collect()

    group["betas"] = [Rate(free, 2.0), 0.5]
    with pytest.raises(ValueError, match=r"invalid betas\[0\]: <.*Rate object"):
        optimizer.step()


def test_a_step_holds_the_options_that_it_has_read():
    """What is on a GPU is read by a kernel that is launched later."""
    counts = []

    class Counting(fusedopt.Adam):
        def _create_state(self, name, param, group):
            counts.append([sys.getrefcount(option) for option in held])
            return super()._create_state(name, param, group)

    (param,) = tensors()
    held = [torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.75)]
    optimizer = Counting([param], lr=held[0], foreach=False)
    optimizer.param_groups[0]["betas"] = (held[1], held[2])
    before = [sys.getrefcount(option) for option in held]
    optimizer.step()
    assert all(now > then for now, then in zip(counts[0], before, strict=True))
    assert [sys.getrefcount(option) for option in held] == before


def test_an_option_that_cannot_be_shown():
    class Shy(Rate):
        def __repr__(self):
            raise ArithmeticError

    (param,) = tensors()
    optimizer = fusedopt.SGD([param])
    optimizer.param_groups[0]["lr"] = Shy(lambda: None, -1.0)
    with pytest.raises(ValueError, match="invalid lr: an object of class Shy"):
        optimizer.step()


def test_a_step_inside_of_a_step():
    """An option's conversion steps another optimizer, and its own."""
    (outer,), (inner,) = tensors(), tensors()
    other = fusedopt.SGD([inner], lr=0.25)
    optimizer = fusedopt.SGD([outer])
    optimizer.param_groups[0]["lr"] = Rate(other.step)
    optimizer.step()
    assert outer.tolist() == [0.5] * 3
    assert inner.tolist() == [0.75] * 3


# What is said of where


@pytest.mark.parametrize("name", ["lone \udc80", "nul \0 inside", "ü"])
def test_names_that_c_or_utf8_cannot_hold(name):
    params = tensors(2)
    optimizer = fusedopt.SGD([("a", params[0]), (name, params[1])], lr=0.5)
    params[1].grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError) as raised:
        optimizer.step()
    shown = name.encode("utf-8", "backslashreplace").decode()
    assert f"parameter 1 ('{shown}'): the gradient is sparse" in str(raised.value)


def assert_located(error, place):
    assert place in "\n".join(getattr(error, "__notes__", ()))


def test_errors_of_others_say_where():
    class Parameter(torch.nn.Parameter):
        @property
        def grad(self):
            raise LookupError("no gradient today")

    first, second = tensors()[0], Parameter(torch.ones(3))
    optimizer = fusedopt.SGD([{"params": [first]}, {"params": [first.detach(), second]}])
    with pytest.raises(LookupError, match="no gradient today") as raised:
        optimizer.step()
    assert_located(raised.value, "in parameter group 1, parameter 1")
    assert first.tolist() == [1] * 3

    optimizer = fusedopt.SGD([{"params": tensors()}, {"params": tensors()}])
    optimizer.param_groups[1]["maximize"] = torch.ones(2)
    with pytest.raises(RuntimeError, match="Boolean value") as raised:
        optimizer.step()
    assert_located(raised.value, "in parameter group 1")


def test_nested_tensors_are_refused_with_their_place():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    param = torch.nn.Parameter(nested)
    param.grad = nested.clone()
    with pytest.raises(TypeError, match="NestedTensor") as raised:
        fusedopt.SGD([*tensors(), param]).step()
    assert_located(raised.value, "in parameter group 0, parameter 1")


def test_what_a_signal_raises_has_no_note():
    def interrupt():
        raise KeyboardInterrupt

    optimizer = fusedopt.SGD(tensors())
    optimizer.param_groups[0]["lr"] = Rate(interrupt)
    with pytest.raises(KeyboardInterrupt) as raised:
        optimizer.step()
    assert not hasattr(raised.value, "__notes__")


# Groups and lists of other classes


class Doubling(dict):
    """A group that gives twice the rate that it holds."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        return 2 * value if name == "lr" else value


class Reversed(list):
    """A list that is walked from its end."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


def outcome(optimizer_class, change):
    params = tensors(3)
    optimizer = optimizer_class(params, lr=0.25)
    change(optimizer)
    for _ in range(2):
        optimizer.step()
    return snapshot(optimizer)


CHANGES = {
    "group": lambda o: o.param_groups.__setitem__(0, Doubling(o.param_groups[0])),
    "mapping": lambda o: o.param_groups.__setitem__(0, collections.UserDict(o.param_groups[0])),
    "ordered": lambda o: o.param_groups.__setitem__(0, collections.OrderedDict(o.param_groups[0])),
    "groups": lambda o: setattr(o, "param_groups", tuple(o.param_groups)),
    "groups in reverse": lambda o: setattr(o, "param_groups", Reversed(o.param_groups)),
    "tuple": lambda o: o.param_groups[0].update(params=tuple(o.param_groups[0]["params"])),
    "none": lambda o: o.param_groups[0].update(params=()),
    "list": lambda o: o.param_groups[0].update(
        params=torch.nn.ParameterList(o.param_groups[0]["params"])
    ),
    "params in reverse": lambda o: o.param_groups[0].update(
        params=Reversed(o.param_groups[0]["params"])
    ),
    "deque": lambda o: o.param_groups[0].update(
        params=collections.deque(o.param_groups[0]["params"])
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_groups_of_other_classes_as_torch_takes_them(change):
    assert outcome(fusedopt.SGD, change) == outcome(torch.optim.SGD, change)


class Watched(dict):
    """A state that tells what is asked of it."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = []

    def __getitem__(self, key):
        self.asked.append(key)
        return super().__getitem__(key)


def test_a_state_of_another_class_is_asked():
    params = tensors(2)
    optimizer = fusedopt.SGD(params, lr=1.0, momentum=0.5)
    optimizer.state = Watched()
    optimizer.step()
    assert optimizer.state.asked
    assert all(optimizer.state[p]["momentum_buffer"].tolist() == [1.0] * 3 for p in params)
    optimizer.step()
    assert params[0].tolist() == [-1.5] * 3


@pytest.mark.parametrize(
    "betas",
    [[0.5, 0.75], torch.tensor([0.5, 0.75]), (torch.tensor(0.5), torch.tensor(0.75)),
     collections.deque([0.5, 0.75])],
    ids=["list", "tensor", "tensors", "deque"],
)  # fmt: skip
def test_betas_of_any_kind(betas):
    results = []
    for given in ((0.5, 0.75), betas):
        (param,) = tensors()
        optimizer = fusedopt.Adam([param])
        optimizer.param_groups[0]["betas"] = given
        optimizer.step()
        results.append(snapshot(optimizer))
    assert results[0] == results[1]


# Versions


def test_versions_of_states_and_scaled_gradients_are_counted_up():
    (param,) = tensors()
    optimizer = fusedopt.Adam([param], amsgrad=True)
    optimizer.step()
    weight = torch.ones(3, requires_grad=True)
    for name, state in optimizer.state[param].items():
        loss = (weight * state).sum()  # keeps the state as it is
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        assert state._version > 0, name
    loss = (weight * param.grad).sum()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert param.grad.tolist() == [0.5] * 3


def test_gradients_that_are_not_scaled_keep_their_version():
    (param,) = tensors()
    fusedopt.Adam([param]).step()
    assert param.grad._version == 0
