"""Nesterov.at_iterate: whatever happens, the lookahead point comes back bit for bit."""

from __future__ import annotations

import contextlib
import copy
import gc
import pickle
import signal
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt import _native
from helpers import bits, snapshot

PACKAGE = str(Path(fusedopt.__file__).parent)


def stepped(*params, **options):
    """An optimizer whose parameters have a velocity."""
    optimizer = fusedopt.Nesterov(params, lr=0.1, **options)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    return optimizer


def parameters(count=2, numel=3):
    return [torch.nn.Parameter(torch.randn(numel)) for _ in range(count)]


def all_bits(params):
    return [bits(param).copy() for param in params]


def assert_bits(params, expected):
    for param, value in zip(params, expected, strict=True):
        assert np.array_equal(bits(param), value)


def assert_left(optimizer, params, before):
    assert "_excursion" not in vars(optimizer)
    assert_bits(params, before)
    optimizer.step()


class Interrupter:
    """Raises KeyboardInterrupt ahead of the nth instruction of this package's Python code."""

    def __init__(self, countdown):
        self.countdown = countdown

    def trace(self, frame, event, _argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.countdown -= 1
            if self.countdown == 0:
                raise KeyboardInterrupt
        return self.trace


def test_an_interruption_anywhere_leaves_the_parameters_at_home():
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    tracer = sys.gettrace()
    for n in range(1, 10_000):
        interrupter = Interrupter(n)
        try:
            sys.settrace(interrupter.trace)
            with optimizer.at_iterate():
                pass
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracer)
        assert "_excursion" not in vars(optimizer)
        assert_bits(params, before)
        if interrupter.countdown > 0:
            break
    assert n > 20
    assert_left(optimizer, params, before)


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_signal_at_any_time_leaves_the_parameters_at_home():
    params = parameters(4, 200_000)
    optimizer = stepped(*params)
    before = all_bits(params)
    start = time.perf_counter()
    with optimizer.at_iterate():
        pass
    duration = time.perf_counter() - start
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        for trial in range(100):
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    signal.setitimer(signal.ITIMER_REAL, duration * (trial + 1) / 80)
                    with optimizer.at_iterate():
                        pass
                    time.sleep(duration)
                finally:  # in here, where what is late is suppressed as well
                    signal.setitimer(signal.ITIMER_REAL, 0)
            assert "_excursion" not in vars(optimizer)
            assert_bits(params, before)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert_left(optimizer, params, before)


class OnCopy(torch.overrides.TorchFunctionMode):
    """Raises in chosen calls of Tensor.copy_, which is what restores."""

    def __init__(self, exception, calls):
        super().__init__()
        self.exception, self.calls, self.count = exception, calls, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.copy_:
            self.count += 1
            if self.count in self.calls:
                raise self.exception
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("calls", [{1}, {2}, {1, 2, 3}])
def test_an_interruption_between_two_parameters_is_held_off(calls):
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    with pytest.raises(KeyboardInterrupt), OnCopy(KeyboardInterrupt, calls), optimizer.at_iterate():
        assert not np.array_equal(bits(params[0]), before[0])
    assert_left(optimizer, params, before)


def test_a_parameter_of_another_shape_keeps_no_other_from_coming_back():
    params = parameters(4)
    optimizer = fusedopt.Nesterov([{"params": params[:2]}, {"params": params[2:]}], lr=0.1)
    for param in params:
        param.grad = torch.ones(3)
    optimizer.step()
    before = all_bits(params)
    message = "parameter group 0, parameter 1: cannot be put back: it has another shape"
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.raises(RuntimeError, match=message))
        stack.enter_context(optimizer.at_iterate())
        params[1].data = torch.zeros(5, 3)
        params[2].data = torch.zeros(1)
    assert "_excursion" not in vars(optimizer)
    assert_bits([params[0], params[3]], [before[0], before[3]])
    assert torch.equal(params[1].detach(), torch.zeros(5, 3))


def test_what_could_not_be_restored_can_be_later():
    params = parameters(3)
    optimizer = stepped(*params)
    before = all_bits(params)
    context = optimizer.at_iterate()
    context.__enter__()
    params[0].data.zero_()
    on_copy = OnCopy(ZeroDivisionError("no"), range(2, 1000))
    message = "group 0, parameter 1: cannot be put back: no"
    with pytest.raises(RuntimeError, match=message) as raised, on_copy:
        context.__exit__(None, None, None)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert "_excursion" in vars(optimizer)
    assert np.array_equal(bits(params[0]), before[0])
    with pytest.raises(RuntimeError, match=r"leave_iterate\(\)"):
        optimizer.step()
    optimizer.leave_iterate()
    assert_left(optimizer, params, before)


def test_a_context_that_was_not_left():
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    optimizer.leave_iterate()  # nothing to do
    lost = optimizer.at_iterate()
    lost.__enter__()
    assert "_excursion" in vars(optimizer)
    with pytest.raises(RuntimeError, match=r"inside at_iterate\(\).*call leave_iterate\(\)"):
        optimizer.step()
    optimizer.leave_iterate()
    assert "_excursion" not in vars(optimizer)
    assert_bits(params, before)
    with optimizer.at_iterate():
        at_iterate = all_bits(params)
        lost.__exit__(None, None, None)  # it is another one that is active
        assert "_excursion" in vars(optimizer)
        assert_bits(params, at_iterate)
    assert_left(optimizer, params, before)


def test_a_context_can_be_used_again():
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    context = optimizer.at_iterate()
    for _ in range(2):
        with context:
            with pytest.raises(RuntimeError, match=r"at_iterate\(\) is already active"), context:
                pass
            assert "_excursion" in vars(optimizer)
            assert not np.array_equal(bits(params[0]), before[0])
        assert "_excursion" not in vars(optimizer)
        assert_bits(params, before)


@pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, copy.copy, pickle.dumps, lambda o: copy.deepcopy((o.param_groups, o))],
    ids=["deepcopy", "copy", "pickle", "deepcopy with parameters"],
)
def test_a_copy_is_refused(make_copy):
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    with optimizer.at_iterate():
        with pytest.raises(RuntimeError, match=r"copied or pickled inside at_iterate\(\)"):
            make_copy(optimizer)
        optimizer.state_dict()
    make_copy(optimizer)
    assert_left(optimizer, params, before)


@pytest.mark.parametrize(
    ("spoil", "exception"),
    [
        (lambda o, p: o.state[p[1]].update(velocity=torch.zeros(2)), RuntimeError),
        (lambda o, p: o.state[p[1]].update(velocity=torch.zeros(3).long()), RuntimeError),
        (lambda o, p: o.state[p[1]].update(velocity="fast"), TypeError),
        (lambda o, p: o.param_groups[0].update(momentum=float("nan")), ValueError),
        (lambda o, p: o.param_groups[0].update(momentum="much"), TypeError),
    ],
)
def test_a_refused_entry_changes_nothing(spoil, exception):
    params = parameters()
    optimizer = stepped(*params)
    spoil(optimizer, params)
    before = snapshot(optimizer)
    with pytest.raises(exception), optimizer.at_iterate():
        pass
    assert "_excursion" not in vars(optimizer)
    assert snapshot(optimizer) == before


def made_in_inference_mode():
    with torch.inference_mode():
        return [torch.randn(3), torch.randn(4)]


@pytest.mark.parametrize("inside", ["params", "nothing", "enter", "leave", "both"])
def test_inference_mode(inside):
    params = made_in_inference_mode() if inside == "params" else parameters()
    optimizer = stepped(*params)
    before = all_bits(params)
    context = optimizer.at_iterate()
    with torch.inference_mode(inside in ("enter", "both")):
        context.__enter__()
        at_iterate = all_bits(params)
    with torch.inference_mode(inside in ("leave", "both")):
        context.__exit__(None, None, None)
    assert not np.array_equal(at_iterate[0], before[0])
    assert_left(optimizer, params, before)


def test_parameters_that_share_memory():
    memory = torch.randn(4)
    params = [torch.nn.Parameter(memory[:3]), torch.nn.Parameter(memory[1:])]
    optimizer = stepped(*params)
    before = bits(memory).copy()
    with optimizer.at_iterate():
        assert not np.array_equal(bits(memory), before)
    assert np.array_equal(bits(memory), before)


def test_a_class_of_the_users_own():
    class Own(torch.Tensor):
        pass

    param = torch.randn(3).as_subclass(Own)
    optimizer = stepped(param)
    before = all_bits([param])
    with optimizer.at_iterate():
        assert not np.array_equal(bits(param), before[0])
    assert_left(optimizer, [param], before)


def test_a_generator_that_is_dropped():
    params = parameters()
    optimizer = stepped(*params)
    before = all_bits(params)

    def evaluate():
        with optimizer.at_iterate():
            yield

    generator = evaluate()
    next(generator)
    assert "_excursion" in vars(optimizer)
    del generator
    assert_left(optimizer, params, before)


def test_autograd_notices_both_moves():
    (param,) = params = parameters(1)
    optimizer = stepped(*params)
    loss = (param * param).sum()
    with optimizer.at_iterate():
        inside = (param * param).sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()


@pytest.mark.parametrize("is_left", [True, False])
def test_nothing_is_kept_alive(is_left):
    params = parameters()
    optimizer = stepped(*params)
    context = optimizer.at_iterate()
    context.__enter__()
    saved = [weakref.ref(value) for _, value, *_ in vars(optimizer)["_excursion"][1]]
    if is_left:
        context.__exit__(None, None, None)
        assert not any(reference() for reference in saved)
    reference = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer, context
        assert reference() is None
        assert not any(reference() for reference in saved)
    finally:
        gc.enable()


@pytest.mark.parametrize("moves", ["nothing", "one", "both"])
def test_a_move_that_fails_is_taken_back(moves):
    """Of any optimizer: what moves is a matter of ``prepare``."""
    params = parameters()
    optimizer = fusedopt.SGD(params)
    before = all_bits(params)

    def move():
        assert "_excursion" in vars(optimizer)
        for param in params[: ("nothing", "one", "both").index(moves)]:
            param.data.zero_()
        raise KeyboardInterrupt

    def prepare():
        assert "_excursion" not in vars(optimizer)
        return [(p, p.detach().clone(), 0, i) for i, p in enumerate(params)], move

    with pytest.raises(KeyboardInterrupt), _native.Excursion(optimizer, "away()", prepare):
        raise AssertionError
    assert "_excursion" not in vars(optimizer)
    assert_bits(params, before)


def test_what_a_prepare_returns_is_checked_ahead_of_any_move():
    (param,) = params = parameters(1)
    optimizer = fusedopt.SGD(params)
    value = param.detach().clone()
    for saved in (value, [param], [(param, value)], [(param, value, "0", 0)], None):
        with pytest.raises((TypeError, RuntimeError, IndexError)):
            _native.Excursion(optimizer, "away()", lambda s=saved: (s, param.zero_)).__enter__()
        assert "_excursion" not in vars(optimizer)
        assert torch.equal(param.detach(), value)
