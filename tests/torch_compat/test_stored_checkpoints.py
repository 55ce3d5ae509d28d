"""Checkpoints of states in fewer bits: with torch, with pickle, and on to the same bits."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits

TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]
SIZES = (5000, 300)
STORED = (
    (torch.float32, {"state_bits": 16, "seed": 7}),
    (torch.float32, {"state_bits": 8}),
    (torch.bfloat16, {"stochastic_rounding": True}),
    (torch.bfloat16, {"master_weights": True, "state_bits": 8}),
    (torch.bfloat16, {"master_weights": True, "state_bits": 16}),
)


def parameters(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in SIZES]


def train(optimizer, steps, first=0):
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return params


def copies(params):
    return [torch.nn.Parameter(param.detach().clone()) for param in params]


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(optimizer, other):
    for group, other_group in zip(optimizer.param_groups, other.param_groups, strict=True):
        for param, other_param in zip(group["params"], other_group["params"], strict=True):
            assert np.array_equal(bits(param), bits(other_param))
            states, others = optimizer.state[param], other.state[other_param]
            assert states.keys() == others.keys()
            for name, state in states.items():
                assert state.dtype == others[name].dtype, name
                assert torch.equal(state, others[name]), name


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_resumed_run_goes_on_with_the_same_bits(row, stored):
    dtype, options = stored
    optimizer = row.optimizer(parameters(dtype), **row.usual, **options)
    params = train(optimizer, 3)
    resumed = row.optimizer(copies(params), **row.usual, **options)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    pickled = pickle.loads(pickle.dumps(optimizer))
    deep = copy.deepcopy(optimizer)
    for each in (optimizer, resumed, pickled, deep):
        train(each, 2, first=3)
    for other in (resumed, pickled, deep):
        assert_same(optimizer, other)


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_a_checkpoint_of_torch_is_converted_once(row):
    """Its options stay those that the optimizer was made with."""
    theirs = row.torch_optimizer(parameters(torch.float32), **row.usual)
    params = train(theirs, 2)
    ours = row.optimizer(copies(params), **row.usual, state_bits=8)
    with pytest.warns(UserWarning, match="have been converted"):
        ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["state_bits"] == 8
    large = ours.param_groups[0]["params"][0]
    codes = [name for name, state in ours.state[large].items() if state.dtype == torch.uint8]
    assert codes
    for name in codes:
        assert ours.state[large][f"{name}_scale"].shape == (-(-SIZES[0] // 256),)
    train(ours, 1, first=2)
    again = row.optimizer(copies(params), **row.usual, state_bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_torch_loads_what_has_been_converted_back(row, stored):
    dtype, options = stored
    optimizer = row.optimizer(parameters(dtype), **row.usual, **options)
    params = train(optimizer, 2)
    numbers = {
        name: state.float()
        for name, state in optimizer.state[params[1]].items()
        if state.is_floating_point() and not name.endswith("_scale")
    }
    assert fusedopt.to_float32_state(optimizer) is optimizer
    theirs = row.torch_optimizer(copies(params), **row.usual)
    theirs.load_state_dict(optimizer.state_dict())
    assert theirs.param_groups[0].keys() == theirs.defaults.keys() | {"params"}
    counterpart = theirs.state[theirs.param_groups[0]["params"][1]]
    names = {n for n, v in theirs.state_dict()["state"].get(1, {}).items() if v is not None}
    assert names == set(optimizer.state[params[1]])
    for name in names - {"step"}:
        assert torch.equal(counterpart[name], numbers[name].to(counterpart[name].dtype))
    train(theirs, 1, first=2)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_a_live_optimizer_is_converted(stored):
    dtype, options = stored
    theirs = torch.optim.AdamW(parameters(dtype))
    params = train(theirs, 2)
    optimizer = fusedopt.from_torch(theirs)
    fusedopt.convert_states(optimizer, **options)
    made = fusedopt.AdamW(copies(params), **options)
    train(made, 1)
    train(optimizer, 1, first=2)
    states, expected = optimizer.state[params[0]], made.state[made.param_groups[0]["params"][0]]
    assert {n: (s.dtype, s.shape) for n, s in states.items()} == {
        n: (s.dtype, s.shape) for n, s in expected.items()
    }


def upper_half(master):
    """What a parameter stores of its master: the nearest bfloat16, ties away from zero."""
    return (master.view(torch.int32) + 0x8000 >> 16).to(torch.int16).view(torch.bfloat16)


def test_masters_are_read_and_written():
    params = parameters(torch.bfloat16)
    optimizer = fusedopt.AdamW(params, master_weights=True)
    values = [torch.randn(param.shape) for param in params]
    optimizer.load_master_params(values)
    for value, master, param in zip(values, optimizer.master_params(), params, strict=True):
        assert torch.equal(master, value)
        assert torch.equal(param, upper_half(value))
    train(optimizer, 2)
    for master, param in zip(optimizer.master_params(), params, strict=True):
        assert master.dtype == torch.float32
        assert not torch.equal(master, param.float())
        assert torch.equal(upper_half(master), param)
    with pytest.raises(ValueError, match="there are 2 parameters, not 1"):
        optimizer.load_master_params(values[:1])
    with pytest.raises(ValueError, match="value 1 has shape"):
        optimizer.load_master_params([values[0], values[0]])


def test_masters_keep_the_layout_of_their_parameter():
    param = torch.nn.Parameter(
        torch.randn(8, 4, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    )
    optimizer = fusedopt.AdamW([param], master_weights=True)
    value = torch.randn(8, 4, 3, 3)
    optimizer.load_master_params([value])
    assert torch.equal(optimizer.master_params()[0], value)
    assert param.is_contiguous(memory_format=torch.channels_last)
    assert optimizer.state[param]["param_remainder"].stride() == param.stride()


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_iterate_of_nesterov_is_visited(stored):
    dtype, options = stored
    params = parameters(dtype)
    optimizer = fusedopt.Nesterov(params, lr=0.1, **options)
    train(optimizer, 2)
    before = [bits(param).copy() for param in params]
    with optimizer.at_iterate():
        assert all((bits(p) != b).any() for p, b in zip(params, before, strict=True))
    assert all((bits(p) == b).all() for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_master_that_was_written_before_the_first_step(row):
    """Its states can be copied, saved and loaded, also where a parameter never has a gradient."""
    params = parameters(torch.bfloat16)
    optimizer = row.optimizer(params, **row.usual, master_weights=True)
    values = [torch.randn(param.shape) for param in params]
    optimizer.load_master_params(values)
    early = pickle.loads(pickle.dumps(optimizer))
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    other = row.optimizer(copies(params), **row.usual, master_weights=True)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for each in (early, other):
        assert torch.equal(each.master_params()[1], values[1])


def test_the_master_of_a_parameter_with_gaps():
    param = torch.nn.Parameter(torch.randn(8, 20).bfloat16()[:, ::2])
    optimizer = fusedopt.AdamW([param], master_weights=True)
    value = torch.randn(8, 10)
    optimizer.load_master_params([value])
    assert torch.equal(optimizer.master_params()[0], value)


def test_values_that_do_not_fit_change_nothing():
    params = parameters(torch.bfloat16)
    optimizer = fusedopt.AdamW(params, master_weights=True)
    before = [bits(param).copy() for param in params]
    for wrong in (
        torch.zeros(SIZES[1], dtype=torch.complex64),
        torch.zeros(SIZES[1], device="meta"),
    ):
        with pytest.raises((ValueError, NotImplementedError)):
            optimizer.load_master_params([torch.zeros(SIZES[0]), wrong])
        assert all(np.array_equal(bits(p), b) for p, b in zip(params, before, strict=True))
        assert not optimizer.state


@pytest.mark.parametrize("bits_before", [16, 8])
def test_no_state_bits_are_the_parameters_dtype(bits_before):
    params = parameters(torch.float32)
    optimizer = fusedopt.AdamW(params, state_bits=bits_before)
    train(optimizer, 1)
    fusedopt.convert_states(optimizer, state_bits=None)
    states = optimizer.state[params[0]]
    assert {name: state.dtype for name, state in states.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), torch.float32
    )
    assert optimizer.defaults["state_bits"] is None


def test_codes_without_scales_are_named():
    params = parameters(torch.float32)
    optimizer = fusedopt.Adam(params, state_bits=8)
    train(optimizer, 1)
    del optimizer.state[params[0]]["exp_avg_scale"]
    with pytest.raises(KeyError, match="'exp_avg' holds codes, but there is no 'exp_avg_scale'"):
        train(optimizer, 1)
    with pytest.raises(ValueError, match="'exp_avg' holds codes, but has no 'exp_avg_scale'"):
        fusedopt.convert_states(optimizer, state_bits=16)


def test_the_iterate_after_a_conversion():
    params = parameters(torch.bfloat16)
    optimizer = fusedopt.Nesterov(params, lr=0.1, state_bits=8)
    train(optimizer, 1)
    fusedopt.to_float32_state(optimizer)
    assert "state_bits" not in optimizer.defaults
    with optimizer.at_iterate():
        pass


class FullOfCodes(fusedopt.Adam):
    """Creates states that hold codes, and leaves their scales to the base."""

    def _create_state(self, name, param, group):
        if name == "exp_avg":
            return torch.full_like(param, 255, dtype=torch.uint8)
        return super()._create_state(name, param, group)


def test_new_codes_without_scales_are_refused():
    params = parameters(torch.float32)
    with pytest.raises(ValueError, match="exp_avg_scale of a new state that holds codes"):
        train(FullOfCodes(params, state_bits=8), 1)
