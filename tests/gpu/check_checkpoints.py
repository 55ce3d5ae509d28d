"""Checkpoints change hands between torch's implementations on the GPU and ours in mid-training."""

from __future__ import annotations

import copy
import inspect
import io

import pytest
import torch

from fusedopt.checking.cases import CASES
from gpu_helpers import GPU, assert_same, gradient_steps, params_of, step_all, twins

TORCH_CASES = [case for case in CASES if case.row.torch_optimizer]
MODES = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable for-loop": {"capturable": True, "foreach": False},
    "capturable foreach": {"capturable": True, "foreach": True},
}
SIZES = (1, 17, 300)
COMBINATIONS = [
    pytest.param(case, mode, id=f"{case}-{mode}")
    for case in TORCH_CASES
    for mode, flags in MODES.items()
    if set(flags) <= set(inspect.signature(case.row.torch_optimizer).parameters)
]


def initial():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float64) for size in SIZES]


def make(optimizer_class, values, options):
    params = [torch.nn.Parameter(value.detach().to(GPU, copy=True)) for value in values]
    for param in params:
        param.grad = torch.zeros_like(param)
    return optimizer_class(params, **options)


def train(optimizer, steps, seed):
    """Steps with gradients that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params_of(optimizer):
            param.grad.copy_(torch.randn(param.shape, generator=generator, dtype=param.dtype))
        optimizer.step()


def through_a_file(optimizer):
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def assert_close(actual, expected, flags):
    """Equal within rounding; torch's capturable Adam corrects its bias in float32."""
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if "capturable" in flags else {
        "rtol": 1e-7, "atol": 1e-9}  # fmt: skip
    for mine, theirs in zip(params_of(actual), params_of(expected), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
        states = actual.state.get(mine, {}), expected.state.get(theirs, {})
        assert set(states[0]) == set(states[1])
        for name in states[0]:
            torch.testing.assert_close(
                states[0][name], states[1][name], **tolerance, check_device=False
            )


def torchs(case, flags):
    """torch's optimizer, or none where it has no such implementation on a GPU."""
    options = {**case.options, **flags}
    try:
        optimizer = make(case.row.torch_optimizer, initial(), options)
        train(optimizer, 5, seed=1)
    except RuntimeError as error:
        if "fused" not in flags:
            raise
        pytest.skip(f"torch: {error}")
    return optimizer


@pytest.mark.parametrize(("case", "mode"), COMBINATIONS)
def test_from_torch_to_ours(case, mode):
    theirs = torchs(case, MODES[mode])
    ours = make(case.row.optimizer, params_of(theirs), {"lr": 123.0})
    ours.load_state_dict(through_a_file(theirs))
    for optimizer in (ours, theirs):
        train(optimizer, 5, seed=2)
    assert_close(ours, theirs, MODES[mode])


@pytest.mark.parametrize(("case", "mode"), COMBINATIONS)
def test_from_ours_to_torch(case, mode):
    options = {**case.options, **MODES[mode]}
    whole = torchs(case, MODES[mode])
    ours = make(case.row.optimizer, initial(), options)
    train(ours, 5, seed=1)
    assert_close(ours, whole, MODES[mode])
    theirs = make(case.row.torch_optimizer, params_of(ours), {"lr": 123.0})
    theirs.load_state_dict(through_a_file(ours))
    for optimizer in (theirs, whole):
        train(optimizer, 5, seed=2)
    assert_close(theirs, whole, MODES[mode])


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_resuming_is_exact_also_on_the_other_device(case, capturable):
    tensors = [torch.randn(size) for size in SIZES]
    gpu, cpu = twins(case, tensors, capturable=capturable)
    steps = gradient_steps(tensors, 6)
    for grads in steps[:3]:
        step_all(grads, gpu, cpu)
    resumed, swapped = twins(case, params_of(gpu))
    resumed.load_state_dict(copy.deepcopy(gpu.state_dict()))
    from_gpu = copy.deepcopy(gpu.state_dict())
    for group in from_gpu["param_groups"]:
        group["capturable"] = False
    swapped.load_state_dict(from_gpu)
    # torch leaves step counts where the checkpoint has them.
    for state in swapped.state.values():
        if "step" in state:
            state["step"] = state["step"].cpu()
    for grads in steps[3:]:
        step_all(grads, gpu, cpu, resumed, swapped)
    assert_same(gpu, cpu)
    assert_same(resumed, cpu, "on the GPU")
    assert_same(swapped, cpu, "on the CPU")
