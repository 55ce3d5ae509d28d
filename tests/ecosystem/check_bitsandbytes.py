"""bitsandbytes: its checkpoints and its live optimizers, on the CPU."""

from __future__ import annotations

import copy
import warnings

import bitsandbytes as bnb
import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.reference.codes import code_values
from helpers import bits, run_python
from peer_helpers import (
    assert_near,
    bounds,
    copies,
    parameters,
    set_grads,
    through_a_file,
    train,
)

USUAL = {"lr": 0.01, "weight_decay": 0.1}
MOMENTUM = {**USUAL, "momentum": 0.9}
CLASSES = {
    "AdamW8bit": (fusedopt.AdamW, {**USUAL, "betas": (0.8, 0.95)}),
    "Adam8bit": (fusedopt.Adam, USUAL),
    "PagedAdamW8bit": (fusedopt.AdamW, USUAL),
    "AdamW": (fusedopt.AdamW, USUAL),
    "Adam32bit": (fusedopt.Adam, USUAL),
    "PagedAdamW32bit": (fusedopt.AdamW, USUAL),
    "SGD8bit": (fusedopt.SGD, MOMENTUM),
    "SGD32bit": (fusedopt.SGD, MOMENTUM),
    "RMSprop8bit": (fusedopt.RMSprop, USUAL),
    "RMSprop": (fusedopt.RMSprop, USUAL),
    "Adagrad8bit": (fusedopt.Adagrad, USUAL),
    "Adagrad32bit": (fusedopt.Adagrad, USUAL),
}
each_class = pytest.mark.parametrize("name", CLASSES)
# Whose code has a sign there and none here.
ENCODED_ANEW = {"RMSprop8bit", "Adagrad8bit"}
# On the CPU it looks a code up by the number as one of 2^16 between -1 and 1.
GRID = 2.0**-15


def trained(name, dtype=torch.float32):
    optimizer = getattr(bnb.optim, name)(parameters(dtype), **CLASSES[name][1])
    train(optimizer, 3)
    return optimizer


def assert_close_after_a_step(ours, theirs):
    params = ours.param_groups[0]["params"]
    set_grads(params, 9)
    set_grads(theirs.param_groups[0]["params"], 9)
    allowed = bounds(ours)
    ours.step()
    theirs.step()
    for p, q, bound in zip(params, theirs.param_groups[0]["params"], allowed, strict=True):
        assert ((p - q).abs() <= bound).all()
        mine, other = ours.state[p], theirs.state[q]
        for number, key in enumerate((k for k in mine if f"{k}_scale" in mine), 1):
            parts = other[f"state{number}"], other[f"absmax{number}"]
            assert_near(mine[key], mine[f"{key}_scale"], *parts, number == 1, GRID)


@each_class
def test_a_checkpoint_goes_on(name):
    """In as many bits as there; where the code is another, in 32."""
    theirs = trained(name)
    state_bits = 32 if name in ENCODED_ANEW else theirs.args.optim_bits
    params = copies(theirs.param_groups[0]["params"])
    ours = CLASSES[name][0](params, lr=5.0, state_bits=state_bits)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours.load_state_dict(through_a_file(theirs.state_dict()))
    assert len(caught) == (1 if name in ENCODED_ANEW else 0)
    for p, q in zip(params, theirs.param_groups[0]["params"], strict=True):
        mine = [key for key in ours.state[p] if key != "step" and not key.endswith("_scale")]
        for number, key in enumerate(mine, 1):
            if ours.state[p][key].dtype == torch.uint8:
                assert torch.equal(ours.state[p][key], theirs.state[q][f"state{number}"])
                scales = ours.state[p][f"{key}_scale"]
                assert torch.equal(scales.view(-1), theirs.state[q][f"absmax{number}"])
    assert_close_after_a_step(ours, theirs)


@each_class
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_live_optimizer_goes_on_as_its_checkpoint_does(name, dtype):
    theirs = trained(name, dtype)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.9)
    params = theirs.param_groups[0]["params"]
    loaded = CLASSES[name][0](copies(params), state_bits=theirs.args.optim_bits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.load_state_dict(copy.deepcopy(theirs.state_dict()))
    ours = fusedopt.from_bitsandbytes(theirs)
    assert ours is theirs
    assert type(ours) is CLASSES[name][0]
    train(ours, 2)
    scheduler.step()
    assert ours.param_groups[0]["lr"] == pytest.approx(0.009)
    for p, q in zip(params, train(loaded, 2), strict=True):
        assert np.array_equal(bits(p), bits(q))


@each_class
def test_a_live_optimizer_before_its_first_step(name):
    optimizer = getattr(bnb.optim, name)(parameters(), **CLASSES[name][1])
    train(fusedopt.from_bitsandbytes(optimizer), 1)


OTHERS = {
    "Lion8bit": {},
    "LAMB8bit": {},
    "LARS8bit": {"lr": 0.1, "momentum": 0.9},
    "AdEMAMix8bit": {},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_formulas_are_refused(name):
    theirs = getattr(bnb.optim, name)(parameters(), **OTHERS[name])
    train(theirs, 1)
    with pytest.raises(TypeError, match=f"not of class bitsandbytes.*{name}"):
        fusedopt.from_bitsandbytes(theirs)
    for cls in (fusedopt.AdamW, fusedopt.SGD):
        with pytest.raises((ValueError, NotImplementedError), match="parameter group 0"):
            cls(parameters(), state_bits=8).load_state_dict(theirs.state_dict())


def test_an_override_is_refused():
    manager = bnb.optim.GlobalOptimManager.get_instance()
    params = parameters()
    manager.register_parameters(params)
    theirs = bnb.optim.AdamW8bit(params)
    manager.override_config(params[0], "optim_bits", 32)
    try:
        with pytest.raises(NotImplementedError, match=r"parameter 0: .* overrides optim_bits"):
            fusedopt.from_bitsandbytes(theirs)
    finally:
        manager.initialize()


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
@pytest.mark.parametrize("signed", [True, False])
def test_its_table_is_ours_but_for_two_units_in_the_last_place(signed, capability):
    """On every kind of CPU; on one without it torch takes the nearest below."""
    code = f"""
import bitsandbytes, torch
from fusedopt.reference.codes import code_values
theirs = bitsandbytes.functional.create_dynamic_map({signed})
apart = theirs.view(torch.int32).long() - torch.from_numpy(code_values({signed})).view(torch.int32)
assert apart.abs().max() <= 2, apart
"""
    assert code_values(signed).size == 256
    run_python(code, ATEN_CPU_CAPABILITY=capability)
