"""Options of storage that are out of bounds or do not fit: refused by name, nothing changes."""

from __future__ import annotations

import re

import pytest
import torch

import fusedopt
from helpers import parameter, snapshot

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16


def step(optimizer, *grads):
    """Of all parameters, of which there is one for each gradient."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimizer.step()


STATE_BITS, SEED = (
    "(must be None, 32, 16 or 8)",
    "(must be an integer of at most 64 bits, at least 0)",
)
# The second parameter's dtype, the options, and what is said of the group behind its number.
REFUSED = [
    *((F32, {"state_bits": b}, f": invalid state_bits: {b!r} {STATE_BITS}") for b in (4, "8", 8.0)),
    (F32, {"state_bits": True}, f": invalid state_bits: True {STATE_BITS}"),
    *((F32, {"seed": s}, f": invalid seed: {s} {SEED}") for s in (-1, 2**64, 1.5)),
    *(
        (dtype, {"master_weights": True},
         f", parameter 1: master_weights needs a bfloat16 parameter, this one is {name}")
        for dtype, name in ((F32, "float32"), (F64, "float64"), (F16, "float16"))
    ),
    (F16, {"stochastic_rounding": True},
     ", parameter 1: stochastic_rounding needs a bfloat16 parameter, this one is float16"),
    (BF16, {"stochastic_rounding": True, "master_weights": True},
     ": stochastic_rounding and master_weights exclude each other"),
]  # fmt: skip


def construct(optimizer, params, options):
    type(optimizer)(params, **options)


def construct_with_groups(optimizer, params, options):
    type(optimizer)([{"params": []}, {"params": params, **options}])


def add_group(optimizer, params, options):
    del optimizer.param_groups[1:]
    try:
        optimizer.add_param_group({"params": params, **options})
    finally:
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group({"params": params})


def load(optimizer, params, options):
    saved = optimizer.state_dict()
    saved["param_groups"][1].update(options)
    optimizer.load_state_dict(saved)


def edit(optimizer, params, options):
    before = dict(optimizer.param_groups[1])
    optimizer.param_groups[1].update(options)
    try:
        optimizer.step()
    finally:
        optimizer.param_groups[1].clear()
        optimizer.param_groups[1].update(before)


# And the number of the group that they make.
WAYS = [(construct, 0), (construct_with_groups, 1), (add_group, 1), (load, 1), (edit, 1)]


@pytest.mark.parametrize(("way", "group"), WAYS, ids=[way.__name__ for way, _ in WAYS])
@pytest.mark.parametrize(("dtype", "options", "reason"), REFUSED)
def test_refused_options_change_nothing(dtype, options, reason, way, group):
    first, *params = (parameter(torch.ones(5, dtype=d)) for d in (F32, BF16, dtype))
    optimizer = fusedopt.Adam([{"params": [first]}, {"params": params}])
    step(optimizer, *(torch.ones(5) for _ in range(3)))
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=re.escape(f"parameter group {group}" + reason)):
        way(optimizer, params, options)
    assert snapshot(optimizer) == before


# Of a parameter in float32; what torch would store may be of any floating dtype.
OTHERS = [(None, 16), (None, 8), (32, 16), (32, 8), (16, 32), (16, 8), (8, None), (8, 32), (8, 16)]


@pytest.mark.parametrize(("stored", "asked_for"), OTHERS)
def test_states_of_other_options_are_refused(stored, asked_for):
    """The name of the state, what it is and what is asked for; and nothing changes."""
    param = parameter(torch.ones(4096))
    optimizer = fusedopt.Adam([param], state_bits=stored)
    step(optimizer, torch.ones(4096))
    before = snapshot(optimizer)
    optimizer.param_groups[0]["state_bits"] = asked_for
    stored_as = {None: "float32", 32: "float32", 16: "bfloat16", 8: "uint8"}[stored]
    with pytest.raises(
        (ValueError, RuntimeError), match=rf"group 0, parameter 0: .*exp_avg\b.*{stored_as}"
    ):
        optimizer.step()
    assert snapshot(optimizer) == before


def test_two_states_with_one_tensor_of_scales_are_refused():
    param = torch.nn.Parameter(torch.ones(5000))
    optimizer = fusedopt.Adam([param], state_bits=8)
    step(optimizer, torch.ones(5000))
    states = optimizer.state[param]
    states["exp_avg_sq_scale"] = states["exp_avg_scale"]
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="shares memory"):
        step(optimizer, torch.ones(5000))
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("wrong", [torch.ones(19), torch.ones(20).double(), torch.ones(40)[::2]])
def test_scales_that_do_not_fit_are_refused(wrong):
    param = torch.nn.Parameter(torch.ones(5000))
    optimizer = fusedopt.Adam([param], state_bits=8)
    step(optimizer, torch.ones(5000))
    optimizer.state[param]["exp_avg_scale"] = wrong
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="exp_avg_scale must be at least 20 numbers"):
        step(optimizer, torch.ones(5000))
    assert snapshot(optimizer) == before
