"""A step on the GPU that cannot be done raises, says where, and changes nothing on any device."""

from __future__ import annotations

import pytest
import torch

import fusedopt
from gpu_helpers import GPU
from helpers import snapshot

HERE = "parameter group 1, parameter 2"


def two_groups(devices=(GPU,), steps=2, **options):
    """Two groups of four parameters, on the devices in turns."""
    torch.manual_seed(0)
    groups = [
        {
            "params": [
                torch.nn.Parameter(torch.randn(4, 5).to(devices[index % len(devices)]))
                for index in range(4)
            ]
        }
        for _ in range(2)
    ]
    optimizer = fusedopt.Adam(groups, **options)
    for _ in range(steps):
        for group in groups:
            for param in group["params"]:
                param.grad = torch.randn(4, 5).to(param.device)
        optimizer.step()
    return optimizer


def move_data(device):
    """Puts the parameter on another device than its gradient, as no assignment to .grad can."""

    def spoil(optimizer, param):
        param.data = param.data.to(device)

    return spoil


def spoil_grad(value):
    def spoil(optimizer, param):
        param.grad = None
        param.grad = value(param)

    return spoil


def spoil_state(name, value):
    def spoil(optimizer, param):
        optimizer.state[param][name] = value(optimizer.state[param][name])

    return spoil


def spoil_option(**options):
    def spoil(optimizer, param):
        optimizer.param_groups[1].update(options)

    return spoil


REFUSALS = {
    # With capturable, that the parameter is on the CPU is wrong in itself.
    "gradient on the GPU": (move_data("cpu"), (RuntimeError, AssertionError), HERE),
    "sparse gradient": (spoil_grad(lambda p: torch.ones_like(p).to_sparse()), RuntimeError, HERE),
    "state on the CPU": (spoil_state("exp_avg", lambda s: s.cpu()), RuntimeError, HERE),
    "last state on the CPU": (spoil_state("exp_avg_sq", lambda s: s.cpu()), RuntimeError, HERE),
    "state of another shape": (spoil_state("exp_avg", lambda s: s[:3]), RuntimeError, HERE),
    "state of integers": (spoil_state("exp_avg", lambda s: s.int()), RuntimeError, HERE),
    "state of elements that share memory": (
        spoil_state("exp_avg", lambda s: s[:1, :1].expand(s.shape)), RuntimeError, HERE),
    "negative lr": (spoil_option(lr=-1.0), ValueError, "group 1: invalid lr"),
    "beta of 1": (spoil_option(betas=(0.9, 1.0)), ValueError, "group 1: invalid betas"),
}  # fmt: skip


def assert_refused(optimizer, spoil, exception, message):
    param = optimizer.param_groups[1]["params"][2]
    spoil(optimizer, param)
    torch.cuda.synchronize()
    before = snapshot(optimizer)
    with pytest.raises(exception, match=message):
        optimizer.step()
    torch.cuda.synchronize()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_step_changes_nothing(name, capturable):
    assert_refused(two_groups(capturable=capturable), *REFUSALS[name])


@pytest.mark.parametrize("name", [name for name in REFUSALS if name != "gradient on the GPU"])
def test_refused_step_changes_nothing_on_the_cpu_either(name):
    """Parameter 2 is on the GPU, those beside it on the CPU."""
    assert_refused(two_groups(devices=(GPU, "cpu")), *REFUSALS[name])


@pytest.mark.parametrize("steps", [0, 2])
def test_gradient_on_the_cpu(steps):
    """A first step may not create a state either."""
    optimizer = two_groups(devices=("cpu",), steps=steps)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for param in params:
        param.grad = torch.ones_like(param)
    for param in params:
        is_spoiled = param is optimizer.param_groups[1]["params"][2]
        grad = None if is_spoiled else param.grad.to(GPU)
        if not is_spoiled:
            param.grad = None
        param.data = param.data.to(GPU)
        if not is_spoiled:
            param.grad = grad
        for name, value in optimizer.state.get(param, {}).items():
            if name != "step":
                optimizer.state[param][name] = value.to(GPU)
    assert_refused(optimizer, lambda *_: None, RuntimeError, HERE)


def test_parameter_whose_elements_share_memory():
    base = torch.randn(4, device=GPU)
    param = torch.nn.Parameter(base[:1].expand(8))
    param.grad = torch.ones(8, device=GPU)
    before = base.clone()
    with pytest.raises(RuntimeError, match=r"group 0, parameter 0.*share memory"):
        fusedopt.SGD([param], lr=1.0).step()
    assert torch.equal(base, before)


def test_a_refused_step_can_be_repeated():
    optimizer, expected = two_groups(), two_groups()
    optimizer.param_groups[1]["lr"] = -1.0
    with pytest.raises(ValueError, match="lr"):
        optimizer.step()
    optimizer.param_groups[1]["lr"] = 1e-3
    for each in (optimizer, expected):
        each.step()
    assert {k: v["param"] for k, v in snapshot(optimizer).items()} == {
        k: v["param"] for k, v in snapshot(expected).items()
    }
