"""What of a checkpoint of bitsandbytes or torchao does not map is refused by name."""

from __future__ import annotations

import copy

import pytest
import torch

import fusedopt
from peer_layouts import (
    GROUP,
    NESTED,
    OF_TWO_STATES,
    SIZES,
    OptimState,
    bitsandbytes,
    parameters,
    random_codes,
    torchao,
    train,
    two_states,
)


def changed(change):
    """A checkpoint of bitsandbytes of which something has been changed."""
    checkpoint = bitsandbytes(two_states(), OF_TWO_STATES)
    change(checkpoint["param_groups"][0], checkpoint["state"][0], checkpoint["state"][0][NESTED])
    return checkpoint


def of_torchao(**parts):
    codes, values, scales = random_codes(SIZES[0], True)
    state = OptimState(**{"codes": codes, "scale": scales, "qmap": values, **parts})
    return torchao([{"exp_avg": state}, {}])


def distributed():
    class Distributed(torch.Tensor):
        pass

    state = torch.zeros(SIZES[0]).as_subclass(Distributed)
    state._local_tensor = of_torchao()["state"][0]["exp_avg"]
    return torchao([{"exp_avg": state}, {}])


FIRST = r"parameter group 0, parameter 0: "
REFUSALS = {
    "AdEMAMix": (
        lambda: changed(lambda group, *_: group.update(alpha=5.0)),
        NotImplementedError, "parameter group 0: bitsandbytes' alpha=5.0 of AdEMAMix"),
    "a schedule of AdEMAMix": (
        lambda: changed(lambda group, *_: group.update(t_beta3=100)),
        NotImplementedError, "parameter group 0: bitsandbytes' t_beta3=100"),
    "three betas": (
        lambda: changed(lambda group, *_: group.update(betas=(0.9, 0.99, 0.999))),
        ValueError, r"parameter group 0: betas=\(0.9, 0.99, 0.999\) .* not two numbers"),
    "a bound of the update's norm": (
        lambda: changed(lambda _g, _s, parts: parts.update(unorm_vec=torch.zeros(1))),
        NotImplementedError, FIRST + "bitsandbytes' state 'unorm_vec' has no counterpart"),
    "percentile clipping": (
        lambda: changed(lambda _g, _s, parts: parts.update(gnorm_vec=torch.zeros(100))),
        NotImplementedError, FIRST + "bitsandbytes' state 'gnorm_vec' has no counterpart"),
    "codes without blocks": (
        lambda: changed(lambda _g, _s, parts: parts.update(max1=parts.pop("absmax1")[:1])),
        NotImplementedError, FIRST + "bitsandbytes' state 'max1' has no counterpart"),
    "no step count": (
        lambda: changed(lambda _g, state, _p: state.pop("step")),
        ValueError, FIRST + "its state of bitsandbytes has no 'step'"),
    "no second state": (
        lambda: changed(lambda _g, _s, parts: parts.pop("state2")),
        ValueError, FIRST + "its state of bitsandbytes has no 'state2'"),
    "no table": (
        lambda: changed(lambda _g, _s, parts: parts.pop("qmap2")),
        ValueError, FIRST + "its state of bitsandbytes has no 'qmap2'"),
    "no scales": (
        lambda: changed(lambda _g, _s, parts: parts.pop("absmax1")),
        ValueError, FIRST + "its state of bitsandbytes has no 'absmax1'"),
    "scales of no block size": (
        lambda: changed(lambda _g, _s, parts: parts.update(absmax1=torch.ones(19))),
        ValueError, FIRST + r"'state1' of shape \(5120,\) does not fit 'absmax1' of shape \(19,\)"),
    "another order in memory": (
        lambda: changed(lambda _g, _s, parts: parts.update(
            state1=parts["state1"].view(64, 80).t())),
        NotImplementedError, FIRST + "'state1' is not contiguous"),
    "a DTensor": (
        lambda: changed(lambda _g, _s, parts: setattr(
            parts["state1"], "_local_tensor", torch.zeros(1))),
        NotImplementedError, FIRST + "'state1' of bitsandbytes is a DTensor"),
    "a name of the parameter": (
        lambda: changed(lambda group, _s, parts: (
            parts.pop("state1"), group.update(param_names=["encoder.weight", "encoder.bias"]))),
        ValueError, r"parameter group 0, parameter 0 \('encoder.weight'\): .* no 'state1'"),
    "torchao: scales that do not fit": (
        lambda: of_torchao(scale=torch.ones(19)),
        ValueError, FIRST + r"'exp_avg' has codes of shape \(5120,\)"),
    "torchao: a DTensor": (
        distributed, NotImplementedError, FIRST + "'exp_avg' is a DTensor of torchao's codes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_does_not_map_is_refused_and_changes_nothing(name):
    make, exception, message = REFUSALS[name]
    optimizer = fusedopt.AdamW(parameters(), state_bits=8, lr=0.5)
    train(optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(exception, match=message):
        optimizer.load_state_dict(make())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, states in before["state"].items():
        assert after["state"][index].keys() == states.keys()
        for key, state in states.items():
            assert torch.equal(after["state"][index][key], state)


def test_what_bitsandbytes_leaves_out_of_its_formula_is_refused():
    """Its momentum knows no dampening, whatever it is told; ours does."""
    state = [[random_codes(SIZES[0], True)], None]
    dampened = {**GROUP, "betas": (0.9, 0.5)}
    message = r"parameter group 0: bitsandbytes computes nothing with betas\[1\]=0.5"
    for cls in (fusedopt.SGD, fusedopt.RMSprop):
        with pytest.raises(NotImplementedError, match=message):
            cls(parameters()).load_state_dict(bitsandbytes(state, dampened))


def test_a_rule_that_they_do_not_have():
    optimizer = fusedopt.Nesterov(parameters(), state_bits=8)
    state = [[random_codes(SIZES[0], True)], None]
    with pytest.raises(ValueError, match="bitsandbytes has no optimizer with the rule 'nesterov'"):
        optimizer.load_state_dict(bitsandbytes(state, GROUP))
    with pytest.raises(ValueError, match="the rule 'nesterov' has no state 'exp_avg'"):
        optimizer.load_state_dict(of_torchao())
