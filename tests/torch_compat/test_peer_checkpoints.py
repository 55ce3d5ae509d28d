"""Checkpoints of bitsandbytes and torchao are loaded."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.reference.codes import encode_blocks
from helpers import bits
from peer_layouts import (
    GROUP,
    MOMENTS,
    NESTED,
    OF_TWO_STATES,
    SIZES,
    OptimState,
    as_torchao,
    bitsandbytes,
    decoded,
    parameters,
    random_codes,
    table,
    torchao,
    train,
    two_states,
)

CONVERTED = "stored otherwise than the options .* have been converted"


LAYOUTS = {
    "bitsandbytes": lambda states: bitsandbytes(states, OF_TWO_STATES),
    "bitsandbytes, before they were nested": lambda states: bitsandbytes(
        states, OF_TWO_STATES, nested=False
    ),
    "torchao": as_torchao,
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


@each_layout
@pytest.mark.parametrize("ulps", [0, 2])
def test_codes_are_kept(layout, ulps):
    """Bit for bit, and without a warning, where block and table are ours but for rounding."""
    states = two_states(ulps)
    optimizer = fusedopt.AdamW(parameters(), state_bits=8, lr=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(layout(states))
    large, small = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    for name, (codes, _, scales), numbers in zip(MOMENTS, *states, strict=True):
        assert torch.equal(large[name], codes)
        assert torch.equal(large[f"{name}_scale"], scales)
        assert torch.equal(small[name], numbers)
        assert f"{name}_scale" not in small
    assert large["step"] == small["step"] == 3
    assert large["step"].dtype == torch.float32
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in GROUP} == GROUP | {"lr": group["lr"]}
    assert float(group["lr"]) == pytest.approx(0.01)
    assert group["state_bits"] == 8
    train(optimizer, 1)
    assert large["step"] == 4


@each_layout
@pytest.mark.parametrize(("ulps", "block"), [(3, 256), (0, 512), (0, 2048), (0, 64)])
def test_other_codes_are_encoded_anew(layout, ulps, block):
    """Those of another table, or of other blocks."""
    if block == 2048 and layout is as_torchao:
        block = 1280  # any that divides the number of elements
    states = two_states(ulps, block)
    optimizer = fusedopt.AdamW(parameters(), state_bits=8)
    with pytest.warns(UserWarning, match=CONVERTED) as caught:
        optimizer.load_state_dict(layout(states))
    assert len(caught) == 1
    large = optimizer.state[optimizer.param_groups[0]["params"][0]]
    for (name, signed), (codes, values, scales) in zip(MOMENTS.items(), states[0], strict=True):
        expected = encode_blocks(decoded(codes, values, scales, block), signed)
        assert np.array_equal(large[name].numpy(), expected[0])
        assert np.array_equal(bits(large[f"{name}_scale"]), expected[1].view(np.int32))


@each_layout
@pytest.mark.parametrize("ulps", [0, 3])
@pytest.mark.parametrize("state_bits", [None, 32, 16])
def test_codes_become_numbers_where_the_options_ask(layout, ulps, state_bits):
    states = two_states(ulps)
    optimizer = fusedopt.AdamW(parameters(torch.bfloat16), state_bits=state_bits)
    with pytest.warns(UserWarning, match=CONVERTED) as caught:
        optimizer.load_state_dict(layout(states))
    assert len(caught) == 1
    dtype = torch.float32 if state_bits == 32 else torch.bfloat16
    large, small = (optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    for (name, signed), (codes, values, scales), numbers in zip(
        MOMENTS.items(), *states, strict=True
    ):
        used = table(signed) if ulps == 0 else values
        expected = torch.from_numpy(decoded(codes, used, scales)).to(dtype)
        assert torch.equal(large[name], expected)
        assert torch.equal(small[name], numbers.to(dtype))
        assert f"{name}_scale" not in large


def test_numbers_stay_numbers_without_a_warning():
    numbers = [list(torch.rand(2, n)) for n in SIZES]
    optimizer = fusedopt.AdamW(parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.load_state_dict(bitsandbytes(numbers, OF_TWO_STATES))
    for param, (first, second) in zip(optimizer.param_groups[0]["params"], numbers, strict=True):
        assert torch.equal(optimizer.state[param]["exp_avg"], first)
        assert torch.equal(optimizer.state[param]["exp_avg_sq"], second)


def test_a_run_goes_on_with_the_same_bits():
    """As from a checkpoint of ours that holds the same codes."""
    options = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}
    optimizer = fusedopt.AdamW(parameters(), **options, state_bits=8)
    params = train(optimizer, 3)
    states = [
        [
            (states[name], table(signed), states[f"{name}_scale"])
            if f"{name}_scale" in states
            else states[name]
            for name, signed in MOMENTS.items()
        ]
        for states in (copy.deepcopy(optimizer.state[param]) for param in params)
    ]
    for layout in LAYOUTS.values():
        original, resumed = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
        checkpoint = layout(copy.deepcopy(states))
        checkpoint["param_groups"][0]["lr"] = 0.01
        resumed.state.clear()
        resumed.load_state_dict(checkpoint)
        for p, q in zip(train(original, 3), train(resumed, 3), strict=True):
            assert np.array_equal(bits(p), bits(q))


OF_ONE_STATE = {
    "momentum": (
        fusedopt.SGD,
        {**GROUP, "betas": (0.7, 0.0), "eps": 0.0},
        "momentum_buffer",
        {"lr": 0.01, "momentum": 0.7, "dampening": 0, "nesterov": False, "weight_decay": 0.1},
    ),
    "rmsprop": (
        fusedopt.RMSprop,
        {**GROUP, "betas": (0.7, 0.0)},
        "square_avg",
        {"alpha": 0.7, "eps": 1e-7, "momentum": 0, "centered": False, "weight_decay": 0.1},
    ),
    "adagrad": (
        fusedopt.Adagrad,
        {**GROUP, "betas": (0.0, 0.0)},
        "sum",
        {"lr": 0.01, "lr_decay": 0, "initial_accumulator_value": 0, "eps": 1e-7},
    ),
}


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("name", OF_ONE_STATE)
def test_optimizers_of_one_state(name, nested):
    """There all of them have the table with a sign; a state without one is encoded anew here."""
    cls, group, key, options = OF_ONE_STATE[name]
    state = random_codes(SIZES[0], True)
    signed = key == "momentum_buffer"
    if not signed:
        state[0][:] = state[0].clamp(min=127)  # a sum of squares has no sign
    optimizer = cls(parameters(), state_bits=8, lr=3.0, weight_decay=3.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.load_state_dict(bitsandbytes([[state], None], group, nested))
    assert len(caught) == (0 if signed else 1)
    states = optimizer.state[optimizer.param_groups[0]["params"][0]]
    expected = (state[0], state[2])
    if not signed:
        numbers = decoded(*state)
        expected = [torch.from_numpy(part) for part in encode_blocks(numbers, False)]
    assert torch.equal(states[key], expected[0])
    assert torch.equal(states[f"{key}_scale"], expected[1])
    assert {option: optimizer.param_groups[0][option] for option in options} == options
    assert not optimizer.param_groups[0].keys() & {"betas", "alpha" if signed else "t_alpha"}
    assert ("step" in states) == (not signed)
    train(optimizer, 1)


@pytest.mark.parametrize("cls", [fusedopt.Adam, fusedopt.AdamW])
def test_bitsandbytes_decouples_weight_decay_in_both_classes(cls):
    options = {"amsgrad": True, "maximize": True}
    optimizer = cls(parameters(), state_bits=8, **options)
    # An option that a group names there has no influence.
    optimizer.load_state_dict(bitsandbytes(two_states(), {**OF_TWO_STATES, **options}))
    group = optimizer.param_groups[0]
    assert group["decoupled_weight_decay"] is True
    assert group["amsgrad"] is group["maximize"] is False
    assert not group.keys() & {"alpha", "t_alpha", "t_beta3"}


@each_layout
def test_options_that_are_not_of_the_formula_stay(layout):
    optimizer = fusedopt.AdamW(parameters(), state_bits=8, fused=True, foreach=False)
    optimizer.load_state_dict(layout(two_states()))
    assert optimizer.param_groups[0]["fused"] is True
    assert optimizer.param_groups[0]["foreach"] is False


def test_a_checkpoint_from_before_the_first_step():
    optimizer = fusedopt.AdamW(parameters(), state_bits=8)
    optimizer.load_state_dict(bitsandbytes([None, None], OF_TWO_STATES))
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    assert "alpha" not in optimizer.param_groups[0]
    train(optimizer, 1)


def test_a_step_count_that_float32_does_not_hold():
    checkpoint = bitsandbytes(two_states(), OF_TWO_STATES)
    checkpoint["state"][0]["step"] = 2**24 + 1
    optimizer = fusedopt.AdamW(parameters(), state_bits=8)
    optimizer.load_state_dict(checkpoint)
    assert int(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"]) == 2**24 + 1


def test_the_checkpoint_is_left_as_it_is():
    checkpoint = bitsandbytes(two_states(), OF_TWO_STATES)
    before = copy.deepcopy(checkpoint)
    fusedopt.AdamW(parameters(), state_bits=8).load_state_dict(checkpoint)
    assert checkpoint["param_groups"] == before["param_groups"]
    assert checkpoint["state"][0].keys() == before["state"][0].keys()
    assert checkpoint["state"][0][NESTED].keys() == before["state"][0][NESTED].keys()


def test_codes_of_four_bits_are_decoded():
    """And whatever else of torchao's decodes itself."""
    packed = torch.randint(0, 256, (SIZES[0] // 2,), dtype=torch.uint8)
    scales = torch.rand(SIZES[0] // 128)
    state = OptimState(packed, scales, torch.linspace(0, 1, 16), shape=(SIZES[0],))
    named = dict.fromkeys(MOMENTS, state)
    optimizer = fusedopt.AdamW(parameters(sizes=SIZES[:1]), state_bits=8)
    with pytest.warns(UserWarning, match=CONVERTED):
        optimizer.load_state_dict(torchao([named]))
    large = optimizer.state[optimizer.param_groups[0]["params"][0]]
    for name, signed in MOMENTS.items():
        expected = encode_blocks(state.dequantize().numpy(), signed)
        assert np.array_equal(large[name].numpy(), expected[0])
        assert np.array_equal(bits(large[f"{name}_scale"]), expected[1].view(np.int32))


def test_codes_in_another_order_than_their_parameter():
    """Blocks are counted along the codes, which are contiguous in every checkpoint."""
    shape = (2, 32, 8, 8)
    states = [
        (codes.view(shape), values, scales)
        for codes, values, scales in (random_codes(4096, signed) for signed in MOMENTS.values())
    ]
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        param = torch.nn.Parameter(torch.ones(shape).to(memory_format=memory_format))
        optimizer = fusedopt.AdamW([param], state_bits=8)
        optimizer.load_state_dict(copy.deepcopy(bitsandbytes([states], OF_TWO_STATES)))
        param.grad = torch.linspace(-1, 1, 4096).view(shape)
        optimizer.step()
        results.append(bits(param))
    assert np.array_equal(*results)


def test_a_hook_sees_the_checkpoint_as_it_was_written():
    optimizer = fusedopt.AdamW(parameters(), state_bits=8)
    seen = []
    optimizer.register_load_state_dict_pre_hook(lambda _, loaded: seen.append(loaded["state"][0]))
    optimizer.load_state_dict(bitsandbytes(two_states(), OF_TWO_STATES))
    assert NESTED in seen[0]
