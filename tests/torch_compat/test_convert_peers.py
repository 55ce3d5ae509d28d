"""Live optimizers of bitsandbytes and torchao become ours, as objects of these packages look.

With the packages themselves: tests/ecosystem.
"""

from __future__ import annotations

import copy
import sys
import types
from typing import ClassVar

import numpy as np
import pytest
import torch

import fusedopt
from helpers import bits
from peer_layouts import (
    GROUP,
    MOMENTS,
    NESTED,
    OF_TWO_STATES,
    as_torchao,
    bitsandbytes,
    parameters,
    random_codes,
    train,
    two_states,
)


class OfTwoStates(torch.optim.Optimizer):
    """An object as bitsandbytes makes it: flat states, and settings that groups do not name."""

    group, bits = OF_TWO_STATES, 8

    def __init__(self, params, **settings):
        super().__init__(params, dict(self.group))
        usual = {
            "optim_bits": self.bits,
            "min_8bit_size": 4096,
            "max_unorm": 0,
            "skip_zeros": False,
        }
        self.args = types.SimpleNamespace(**usual | settings)
        self.mng = types.SimpleNamespace(
            index2config={}, pid2config={}, module_weight_config_triple=[]
        )
        self.initialized, self.is_paged, self.optimizer_name = True, False, "adam"

    def step(self, closure=None):
        raise AssertionError("a step of the class before")


class OfOneState(OfTwoStates):
    group: ClassVar = {**GROUP, "betas": (0.7, 0.0), "eps": 0.0}


class OfTorchao(torch.optim.Optimizer):
    def __init__(self, params, block_size=256, bf16_stochastic_round=False):
        super().__init__(params, {**GROUP, "amsgrad": False})
        self.block_size, self.is_adamw = block_size, True
        self.bf16_stochastic_round = bf16_stochastic_round
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])

    def step(self, closure=None):
        raise AssertionError("a step of the class before")


MODULES = {
    "bitsandbytes.optim": {
        "AdamW8bit": OfTwoStates, "PagedAdamW32bit": OfTwoStates, "Adam": OfTwoStates,
        "LAMB8bit": OfTwoStates, "SGD8bit": OfOneState,
    },
    "torchao.optim": {"AdamW8bit": OfTorchao, "AdamWFp8": OfTorchao, "_AdamW": OfTorchao},
}  # fmt: skip


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """The modules with their classes, by the names of the packages."""
    made = {}
    for name, classes in MODULES.items():
        module = types.ModuleType(name)
        for called, base in classes.items():
            setattr(module, called, type(called, (base,), {"__module__": name}))
        monkeypatch.setitem(sys.modules, name, module)
        made[name.partition(".")[0]] = module
    return types.SimpleNamespace(**made)


def stepped(cls, params, checkpoint, **settings):
    """An object of theirs with the states of a checkpoint."""
    optimizer = cls(params, **settings)
    for index, states in checkpoint["state"].items():
        flat = {**states, **states.get(NESTED, {})}
        flat.pop(NESTED, None)
        optimizer.state[params[index]] = flat
    return optimizer


def of_bitsandbytes(packages, name="AdamW8bit", params=None, **settings):
    checkpoint = bitsandbytes(two_states(), OF_TWO_STATES)
    cls = getattr(packages.bitsandbytes, name)
    return stepped(cls, params or parameters(), checkpoint, **settings)


def test_goes_on_as_ours_with_the_loaded_checkpoint(packages):
    optimizer = of_bitsandbytes(packages)
    others = copy.deepcopy(optimizer.param_groups[0]["params"])
    loaded = fusedopt.AdamW(others, state_bits=8)
    loaded.load_state_dict(bitsandbytes(two_states(), OF_TWO_STATES))
    assert fusedopt.from_bitsandbytes(optimizer) is optimizer
    assert type(optimizer) is fusedopt.AdamW
    for p, q in zip(train(optimizer, 3), train(loaded, 3), strict=True):
        assert np.array_equal(bits(p), bits(q))
        mine, expected = optimizer.state[p], loaded.state[q]
        assert mine.keys() == expected.keys()
        for name, state in mine.items():
            assert torch.equal(state, expected[name])
    assert optimizer.state_dict()["param_groups"] == loaded.state_dict()["param_groups"]
    assert not vars(optimizer).keys() & {"args", "mng", "initialized", "is_paged", "optimizer_name"}


def test_everything_stays_the_object_it_was(packages):
    optimizer = of_bitsandbytes(packages)
    params = optimizer.param_groups[0]["params"]
    groups, defaults, state = optimizer.param_groups, optimizer.defaults, optimizer.state
    parts = [groups[0], params, *(state[p] for p in params)]
    codes = [state[params[0]][name] for name in ("state1", "state2")]
    fusedopt.from_bitsandbytes(optimizer)
    assert optimizer.param_groups is groups
    assert optimizer.defaults is defaults
    assert optimizer.state is state
    now = [groups[0], groups[0]["params"], *(state[p] for p in params)]
    assert all(a is b for a, b in zip(now, parts, strict=True))
    assert all(state[params[0]][n] is c for n, c in zip(MOMENTS, codes, strict=True))


@pytest.mark.parametrize(
    ("name", "cls", "state_bits"),
    [("PagedAdamW32bit", fusedopt.AdamW, 32), ("Adam", fusedopt.Adam, 8)],
)
def test_names_say_how_states_are_stored(packages, name, cls, state_bits):
    params = parameters(torch.bfloat16)
    optimizer = of_bitsandbytes(packages, name, params, optim_bits=state_bits)
    fusedopt.from_bitsandbytes(optimizer)
    assert type(optimizer) is cls
    assert optimizer.param_groups[0]["state_bits"] == state_bits
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True
    dtype = torch.float32 if state_bits == 32 else torch.uint8
    assert optimizer.state[params[0]]["exp_avg"].dtype == dtype
    train(optimizer, 1)


def test_options_under_other_names(packages):
    state = random_codes(5120, True)
    checkpoint = bitsandbytes([[state], None], OfOneState.group)
    optimizer = stepped(packages.bitsandbytes.SGD8bit, parameters(), checkpoint)
    optimizer.param_groups[0]["called"] = "the only one"
    fusedopt.from_bitsandbytes(optimizer)
    for options in (optimizer.defaults, optimizer.param_groups[0]):
        assert options["momentum"] == 0.7
        assert options["dampening"] == 0
        assert not options.keys() & {"betas", "eps", "alpha"}
    assert optimizer.param_groups[0]["called"] == "the only one"
    train(optimizer, 1)
    optimizer.add_param_group({"params": parameters(), "lr": 0.5})
    assert optimizer.param_groups[1]["state_bits"] == 8


def test_schedulers_and_hooks_go_on(packages):
    optimizer = of_bitsandbytes(packages)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    fusedopt.from_bitsandbytes(optimizer)
    train(optimizer, 1)
    scheduler.step()
    assert calls == ["post"]
    assert optimizer.param_groups[0]["lr"] == 0.005


def test_ours_is_returned_as_it_is():
    optimizer = fusedopt.AdamW(parameters())
    assert fusedopt.from_bitsandbytes(optimizer) is optimizer
    assert fusedopt.from_torchao(optimizer) is optimizer


def torchao_in(dtype):
    """A checkpoint of torchao, which stores states without codes as their parameter."""
    checkpoint = as_torchao(two_states())
    for states in checkpoint["state"].values():
        for name, state in states.items():
            if type(state) is torch.Tensor and name != "step":
                states[name] = state.to(dtype)
    return checkpoint


@pytest.mark.parametrize("rounds", [False, True])
def test_torchao(packages, rounds):
    params = parameters(torch.bfloat16)
    checkpoint = torchao_in(torch.bfloat16)
    cls = packages.torchao.AdamW8bit
    optimizer = stepped(cls, params, checkpoint, bf16_stochastic_round=rounds)
    lr = optimizer.param_groups[0]["lr"]
    fusedopt.from_torchao(optimizer)
    group = optimizer.param_groups[0]
    assert type(optimizer) is fusedopt.AdamW
    assert group["lr"] is lr
    assert group["state_bits"] == 8
    assert group.get("stochastic_rounding", False) is rounds
    assert ("stochastic_rounding" in group) is rounds
    assert not vars(optimizer).keys() & {"block_size", "bf16_stochastic_round", "is_adamw"}
    large, small = (optimizer.state[p] for p in params)
    for name, (codes, _, scales) in zip(MOMENTS, two_states()[0], strict=True):
        assert torch.equal(large[name], codes)
        assert torch.equal(large[f"{name}_scale"], scales)
        assert small[name].dtype == torch.float32
    train(optimizer, 1)
    assert large["step"] == 4


def overridden(where):
    def make(packages):
        optimizer = of_bitsandbytes(packages)
        key = (0, 1) if where == "index2config" else id(optimizer.param_groups[0]["params"][1])
        getattr(optimizer.mng, where)[key] = {"optim_bits": 32}
        return optimizer

    return make


def overridden_module(packages):
    optimizer = of_bitsandbytes(packages)
    optimizer.mng.module_weight_config_triple.append((None, "weight", {}))
    optimizer.initialized = False
    return optimizer


def derived(packages):
    cls = type("AdamW8bit", (packages.bitsandbytes.AdamW8bit,), {"__module__": "own"})
    return of_bitsandbytes(
        types.SimpleNamespace(bitsandbytes=types.SimpleNamespace(own=cls)), "own"
    )


def replaced_step(packages):
    optimizer = of_bitsandbytes(packages)
    optimizer.step = lambda closure=None: None
    return optimizer


def spoilt(packages):
    optimizer = of_bitsandbytes(packages)
    del optimizer.state[optimizer.param_groups[0]["params"][1]]["state2"]
    return optimizer


def complex_parameter(packages):
    params = [*parameters(), torch.zeros(3, dtype=torch.complex64)]
    return of_bitsandbytes(packages, params=params)


REFUSALS = {
    "no formula of ours": (
        lambda packages: of_bitsandbytes(packages, "LAMB8bit"),
        TypeError, "not of class bitsandbytes.optim.LAMB8bit"),
    "a derived class": (derived, TypeError, "not of class own.AdamW8bit"),
    "torch's": (lambda _: torch.optim.AdamW(parameters()), TypeError, "not of class torch.optim"),
    "a step replaced": (replaced_step, TypeError, "step of this AdamW8bit has been replaced"),
    "a bound of the norm": (
        lambda packages: of_bitsandbytes(packages, max_unorm=0.5),
        NotImplementedError, "bitsandbytes' max_unorm=0.5 has no counterpart"),
    "zeros skipped": (
        lambda packages: of_bitsandbytes(packages, skip_zeros=True),
        NotImplementedError, "bitsandbytes' skip_zeros=True has no counterpart"),
    "percentile clipping": (
        lambda packages: of_bitsandbytes(packages, percentile_clipping=5),
        NotImplementedError, "bitsandbytes' percentile_clipping=5 has no counterpart"),
    "fewer parameters in 8 bits": (
        lambda packages: of_bitsandbytes(packages, min_8bit_size=16384),
        NotImplementedError, "bitsandbytes' min_8bit_size=16384 has no counterpart"),
    "overridden by index": (
        overridden("index2config"), NotImplementedError,
        "group 0, parameter 1: bitsandbytes' GlobalOptimManager overrides optim_bits"),
    "overridden by parameter": (
        overridden("pid2config"), NotImplementedError,
        "group 0, parameter 1: bitsandbytes' GlobalOptimManager overrides optim_bits"),
    "overridden by module": (
        overridden_module, NotImplementedError, "GlobalOptimManager overrides parameters"),
    "a state is missing": (
        spoilt, ValueError, "group 0, parameter 1: its state of bitsandbytes has no 'state2'"),
    "complex": (
        complex_parameter, NotImplementedError, "group 0, parameter 2: complex parameters"),
}  # fmt: skip


def parts(optimizer):
    groups = [dict(group) for group in optimizer.param_groups]
    states = [dict(states) for states in optimizer.state.values()]
    return type(optimizer), dict(vars(optimizer)), dict(optimizer.defaults), groups, states


@pytest.mark.parametrize("name", REFUSALS)
def test_refused_and_left_as_it_was(name, packages):
    make, exception, message = REFUSALS[name]
    optimizer = make(packages)
    before = parts(optimizer)
    with pytest.raises(exception, match=message):
        fusedopt.from_bitsandbytes(optimizer)
    assert str(parts(optimizer)) == str(before)


def test_torchaos_class_for_its_own_parameters_is_refused(packages):
    for make in (packages.torchao._AdamW, packages.bitsandbytes.AdamW8bit):
        with pytest.raises(TypeError, match=r"from_torchao takes an optimizer of torchao.optim"):
            fusedopt.from_torchao(make(parameters()))
