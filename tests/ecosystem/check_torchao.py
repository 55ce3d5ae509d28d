"""torchao: checkpoints and live optimizers with states in few bits, on the CPU."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torchao.optim

import fusedopt
from fusedopt.reference.codes import encode_blocks
from helpers import bits
from peer_helpers import (
    assert_near,
    bounds,
    copies,
    parameters,
    set_grads,
    through_a_file,
    train,
)

USUAL = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}
CLASSES = {
    "AdamW8bit": fusedopt.AdamW,
    "Adam8bit": fusedopt.Adam,
    "AdamW4bit": fusedopt.AdamW,
    "AdamWFp8": fusedopt.AdamW,
}
STATES = {"exp_avg": True, "exp_avg_sq": False}


@pytest.fixture(autouse=True)
def _without_a_compiler():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def trained(name, dtype=torch.float32, **options):
    optimizer = getattr(torchao.optim, name)(parameters(dtype), **USUAL, **options)
    train(optimizer, 3)
    return optimizer


@pytest.mark.parametrize("name", ["AdamW8bit", "Adam8bit"])
def test_a_checkpoint_goes_on(name):
    theirs = trained(name)
    params = copies(theirs.param_groups[0]["params"])
    ours = CLASSES[name](params, state_bits=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(through_a_file(theirs.state_dict()))
    for p, q in zip(params, theirs.param_groups[0]["params"], strict=True):
        mine, other = ours.state[p], theirs.state[q]
        for key in STATES:
            if mine[key].dtype == torch.uint8:
                assert torch.equal(mine[key], other[key].codes)
                assert torch.equal(mine[f"{key}_scale"].view(-1), other[key].scale)
        set_grads([p, q], 9)
    allowed = bounds(ours)
    ours.step()
    theirs.step()
    for p, q, bound in zip(params, theirs.param_groups[0]["params"], allowed, strict=True):
        assert ((p - q).abs() <= bound).all()
        mine, other = ours.state[p], theirs.state[q]
        for key, signed in STATES.items():
            if mine[key].dtype == torch.uint8:
                parts = other[key].codes, other[key].scale
                assert_near(mine[key], mine[f"{key}_scale"], *parts, signed)


@pytest.mark.parametrize(
    ("name", "options"),
    [("AdamW8bit", {"block_size": 128}), ("AdamW4bit", {}), ("AdamWFp8", {})],
)
def test_other_codes_are_encoded_anew(name, options):
    theirs = trained(name, **options)
    checkpoint = through_a_file(theirs.state_dict())
    params = copies(theirs.param_groups[0]["params"])
    ours = CLASSES[name](params, state_bits=8)
    with pytest.warns(UserWarning, match="have been converted"):
        ours.load_state_dict(checkpoint)
    for p, q in zip(params, theirs.param_groups[0]["params"], strict=True):
        for key, signed in STATES.items():
            state = theirs.state[q][key]
            if type(state) is torch.Tensor:
                assert torch.equal(ours.state[p][key], state)
                continue
            codes, scales = encode_blocks(state.dequantize().numpy(), signed)
            assert np.array_equal(ours.state[p][key].numpy(), codes)
            assert np.array_equal(
                bits(ours.state[p][f"{key}_scale"]).ravel(), scales.view(np.int32)
            )
    train(ours, 1)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("rounds", [False, True])
def test_a_live_optimizer_goes_on_as_its_checkpoint_does(name, rounds):
    theirs = trained(name, torch.bfloat16, bf16_stochastic_round=rounds)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(theirs, 0.9)
    params = theirs.param_groups[0]["params"]
    loaded = CLASSES[name](copies(params), state_bits=8, stochastic_rounding=rounds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded.load_state_dict(through_a_file(theirs.state_dict()))
    ours = fusedopt.from_torchao(theirs)
    assert ours is theirs
    assert type(ours) is CLASSES[name]
    assert ours.param_groups[0].get("stochastic_rounding", False) is rounds
    train(ours, 2)
    scheduler.step()
    assert float(ours.param_groups[0]["lr"]) == pytest.approx(0.009)
    for p, q in zip(params, train(loaded, 2), strict=True):
        assert np.array_equal(bits(p), bits(q))


def test_what_is_saved_needs_no_torchao():
    ours = fusedopt.from_torchao(trained("AdamW8bit"))
    saved = ours.state_dict()["state"]
    kinds = {type(state) for states in saved.values() for state in states.values()}
    assert kinds == {torch.Tensor}
    resumed = fusedopt.AdamW(copies(ours.param_groups[0]["params"]), state_bits=8)
    resumed.load_state_dict(through_a_file(ours.state_dict()))
    for p, q in zip(train(ours, 1), train(resumed, 1), strict=True):
        assert np.array_equal(bits(p), bits(q))


def test_classes_of_no_formula_here_are_refused():
    theirs = torchao.optim._AdamW(parameters())
    with pytest.raises(TypeError, match=r"not of class torchao.*_AdamW"):
        fusedopt.from_torchao(theirs)
