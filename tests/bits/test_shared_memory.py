"""Tensors that share memory: what a loop over the parameters gives, or a refusal."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fusedopt
from emulation import emulated, emulation
from fusedopt.checking.verify import threads
from helpers import bits, scaled_step, snapshot

ENGINES = {"cpu": contextlib.nullcontext, "emulated": emulation}


@pytest.fixture(params=ENGINES)
def engine(request):
    """The CPU's engine, and the body of the CUDA kernels."""
    with ENGINES[request.param]():
        yield request.param


def one_after_the_other(params, make):
    """What a loop does: an optimizer for each parameter, stepped in turn."""
    for param in params:
        if param.grad is not None:
            make([param]).step()


def views(memory, places, grads=None):
    """Parameters at [begin, end) of one memory, with gradients elsewhere, or in that memory too."""
    params = [torch.nn.Parameter(memory[begin:end]) for begin, end in places]
    for i, param in enumerate(params):
        torch.manual_seed(i)
        param.grad = torch.randn(param.shape).to(memory.dtype)
        if grads is not None and grads[i] is not None:
            param.grad = memory[grads[i] : grads[i] + param.numel()]
    return params


spans = st.tuples(st.integers(0, 300), st.integers(1, 60)).map(lambda s: (s[0], s[0] + s[1]))


@given(
    places=st.lists(spans, min_size=2, max_size=8),
    grads=st.lists(st.one_of(st.none(), st.integers(0, 300)), min_size=8, max_size=8),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    name=st.sampled_from(sorted(ENGINES)),
    options=st.sampled_from([{}, {"momentum": 0.9}, {"weight_decay": 0.5, "maximize": True}]),
)
def test_any_overlap_is_stepped_as_a_loop_would(places, grads, dtype, name, options):
    """Views of one memory, and gradients that are views of it as well."""
    for i, (begin, end) in enumerate(places):
        if grads[i] is not None and grads[i] < end and begin < grads[i] + end - begin:
            grads[i] = None  # of one parameter both: refused, see below

    def run(step):
        torch.manual_seed(7)
        memory = torch.randn(400).to(dtype)
        step(views(memory, places, grads), lambda params: fusedopt.SGD(params, lr=0.5, **options))
        return bits(memory)

    expected = run(one_after_the_other)
    with ENGINES[name]():
        ours = run(lambda params, make: make(params).step())
    assert np.array_equal(ours, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_large_overlapping_parameters_are_cut_among_threads(count):
    places = [(0, 500_000), (600_000, 900_000), (400_000, 700_000), (0, 1_000_000)]

    def run(step):
        torch.manual_seed(7)
        memory = torch.randn(1_000_000)
        params = views(memory, places)
        step(params, lambda params: fusedopt.Adam(params, lr=0.5))
        return bits(memory)

    with threads(count):
        ours = run(lambda params, make: make(params).step())
    assert np.array_equal(ours, run(one_after_the_other))


def test_only_what_shares_memory_is_put_in_order():
    """One pair among many takes two launches, not one for each tensor."""
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(1000)]
    params[700].data = params[20].data
    for param in params:
        param.grad = torch.ones(3)
    with emulation():
        fusedopt.SGD(params, lr=0.5).step()
    assert emulated.launches() == 2
    assert all(param.tolist() == [-0.5] * 3 for i, param in enumerate(params) if i not in (20, 700))
    assert params[20].tolist() == [-1.0] * 3


def test_small_views_of_a_large_parameter_take_one_round():
    memory = torch.zeros(1000)
    params = views(memory, [(0, 1000), *((i, i + 10) for i in range(0, 1000, 10))])
    with emulation():
        fusedopt.SGD(params).step()
    assert emulated.launches() == 2


def test_overlaps_come_and_go(engine):
    """What a step remembers of the last one is not taken for granted."""
    memory = torch.zeros(8)
    params = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    optimizer = fusedopt.SGD(params, lr=1.0)
    for places in ((0, 4, None), (0, 2, None), (None, 0, 0), (None, None, None), (4, 2, 0)):
        memory.zero_()
        for param, place in zip(params, places, strict=True):
            param.data = torch.zeros(4) if place is None else memory[place : place + 4]
            param.grad = torch.ones(4)
        optimizer.step()
        expected = torch.zeros(8)
        for place in places:
            if place is not None:
                expected[place : place + 4] -= 1
        assert torch.equal(memory, expected)
        for param, place in zip(params, places, strict=True):
            assert place is not None or param.tolist() == [-1.0] * 4


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_gradient_that_is_another_parameter(engine, first):
    a, b = torch.nn.Parameter(torch.full((5,), 2.0)), torch.nn.Parameter(torch.zeros(5))
    a.grad, b.grad = torch.ones(5), a.detach()
    fusedopt.SGD([a, b] if first else [b, a], lr=0.5).step()
    assert a.tolist() == [1.5] * 5
    assert b.tolist() == [-0.75] * 5 if first else [-1.0] * 5


def test_a_state_that_belongs_to_two_parameters(engine):
    params = [torch.nn.Parameter(torch.zeros(5)) for _ in range(2)]
    optimizer = fusedopt.SGD(params, lr=1.0, momentum=0.5)
    for param in params:
        param.grad = torch.ones(5)
    buffer = torch.zeros(5)
    for param in params:
        optimizer.state[param]["momentum_buffer"] = buffer
    optimizer.step()
    assert params[0].tolist() == [-1.0] * 5
    assert params[1].tolist() == [-1.5] * 5
    assert buffer.tolist() == [1.5] * 5


def test_a_state_that_is_another_parameter(engine):
    a, b = (torch.nn.Parameter(torch.zeros(5)) for _ in range(2))
    a.grad, b.grad = torch.ones(5), torch.ones(5)
    optimizer = fusedopt.SGD([a, b], lr=1.0, momentum=0.5)
    optimizer.state[b]["momentum_buffer"] = a.detach()
    optimizer.step()  # a = -1; then its memory becomes 0.5 * -1 + 1
    assert a.tolist() == [0.5] * 5
    assert b.tolist() == [-0.5] * 5


# One gradient, or one count, for two parameters


def shared(optimizer_class=fusedopt.SGD, **options):
    params = [torch.nn.Parameter(torch.ones(6)) for _ in range(3)]
    for param in params:
        param.grad = torch.ones(6)
    return params, optimizer_class(params, **options)


def test_a_gradient_of_two_parameters(engine):
    params, optimizer = shared(lr=0.5)
    params[2].grad = params[0].grad
    optimizer.step()
    assert all(param.tolist() == [0.5] * 6 for param in params)


@pytest.mark.parametrize("part", [slice(0, 6), slice(3, 9)], ids=["all", "part"])
def test_a_gradient_of_two_parameters_that_is_scaled_is_refused(engine, part):
    """The scale would divide it twice."""
    params, optimizer = shared(lr=0.5)
    memory = torch.ones(9)
    params[0].grad, params[2].grad = memory[:6], memory[part]
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="group 0, parameter 2: the gradient shares memory with "
                       "that of parameter 0 of group 0, so it cannot be unscaled"):  # fmt: skip
        scaled_step(optimizer, 2.0)
    assert snapshot(optimizer) == before


def test_scaled_gradients_between_each_other_are_not_shared(engine):
    memory = torch.full((6, 2), 8.0)
    params, optimizer = shared(lr=0.5)
    params[0].grad, params[2].grad = memory[:, 0], memory[:, 1]
    scaled_step(optimizer, 2.0)
    assert (memory == 4).all()
    assert params[0].tolist() == params[2].tolist() == [-1.0] * 6


@pytest.mark.parametrize("capturable", [False, True])
def test_a_step_count_of_two_parameters_is_refused(capturable):
    """torch counts it once for each of them; a GPU, as often as its blocks happen to see it."""
    params, optimizer = shared(fusedopt.Adam, capturable=capturable)
    with emulation() if capturable else contextlib.nullcontext():
        optimizer.step()
        optimizer.state[params[2]]["step"] = optimizer.state[params[0]]["step"]
        before = snapshot(optimizer)
        with pytest.raises(ValueError, match="parameter 2: state 'step' shares memory with that "
                           "of parameter 0 of group 0"):  # fmt: skip
            optimizer.step()
    assert snapshot(optimizer) == before


def test_counts_of_averages_that_share_memory_are_refused(engine):
    params, optimizer = shared(fusedopt.Adam, ema_decay=1)
    optimizer.step()
    first, last = optimizer.state[params[0]], optimizer.state[params[2]]
    for other, said in (
        (first["ema_step"], "that of parameter 0 of group 0"),
        (last["step"], "state 'step' of parameter 2 of group 0"),
        (first["step"], "state 'step' of parameter 0 of group 0"),
    ):
        last["ema_step"] = other
        before = snapshot(optimizer)
        message = f"parameter 2: state 'ema_step' shares memory with {said}"
        with pytest.raises(ValueError, match=message):
            optimizer.step()
        assert snapshot(optimizer) == before


def test_a_shared_count_is_told_by_its_place_also_where_others_count_nothing():
    params = [torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(4)]
    groups = [{"params": params[:2]}, {"params": params[2:], "stochastic_rounding": True}]
    optimizer = fusedopt.SGD(groups)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    optimizer.state[params[3]]["step"] = optimizer.state[params[2]]["step"]
    place = "group 1, parameter 1: state 'step' shares memory with that of parameter 0 of group 1"
    with pytest.raises(ValueError, match=place):
        optimizer.step()


# Within one parameter


@pytest.mark.parametrize("offset", [0, 1, 5])
def test_a_gradient_that_overlaps_its_parameter_is_refused(engine, offset):
    memory = torch.ones(12)
    param = torch.nn.Parameter(memory[:6])
    param.grad = memory[offset : offset + 6]
    with pytest.raises(RuntimeError, match="the gradient shares memory with the parameter; clone"):
        fusedopt.SGD([param]).step()
    assert (memory == 1).all()


def test_columns_of_one_matrix_share_nothing(engine):
    memory = torch.ones(6, 3)
    param = torch.nn.Parameter(memory[:, 0])
    param.grad = memory[:, 1]
    optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.5)
    optimizer.state[param]["momentum_buffer"] = memory[:, 2]
    optimizer.step()
    assert memory[0].tolist() == [0.25, 1.0, 1.5]
    assert (memory == memory[0]).all()


def test_neighbours_share_nothing(engine):
    memory = torch.ones(12)
    param = torch.nn.Parameter(memory[:6])
    param.grad = memory[6:]
    fusedopt.SGD([param], lr=0.5).step()
    assert memory.tolist() == [0.5] * 6 + [1.0] * 6
