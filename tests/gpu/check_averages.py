"""ema_decay and l1 on the GPU: the bits of the CPU, whoever counts what the averages are of."""

from __future__ import annotations

import copy

import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES
from gpu_helpers import (
    GPU,
    LARGEST_CASES,
    assert_same,
    capture,
    feed,
    gradient_steps,
    mismatches,
    mixed_tensors,
    optimizer_on,
    params_of,
    step_all,
)
from helpers import snapshot

WAYS = [{"l1": 0.25}, {"ema_decay": 0.75}, {"ema_decay": 1, "l1": 0.25}]
# A rule that counts steps, and one that counts none.
ADAM, SGD = (next(case for case in CASES if case.row.name == name) for name in ("Adam", "SGD"))

every_way = pytest.mark.parametrize("options", WAYS, ids=str)
either_counts = pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
either_case = pytest.mark.parametrize("case", [ADAM, SGD], ids=str)


def twins(case, tensors, options, **more):
    """The same on the GPU, with more options, and on the CPU."""
    return (
        optimizer_on(GPU, case, tensors, **options, **more),
        optimizer_on("cpu", case, tensors, **options),
    )


def counts_of(optimizer):
    return [states["ema_step"] for states in optimizer.state.values()]


@either_counts
@every_way
@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_steps(case, options, capturable):
    tensors = [*mixed_tensors(), torch.randn(70, 131).t()]
    gpu, cpu = twins(case, tensors, options, capturable=capturable)
    for grads in gradient_steps(tensors, 4):
        step_all(grads, gpu, cpu)
        assert_same(gpu, cpu)


@either_case
def test_the_threshold_follows_a_rate_on_the_gpu(case):
    tensors = mixed_tensors()
    rates = [torch.tensor(0.5, device=device) for device in (GPU, "cpu")]
    gpu = optimizer_on(GPU, case, tensors, lr=rates[0], l1=0.25, capturable=True)
    cpu = optimizer_on("cpu", case, tensors, lr=rates[1], l1=0.25)
    for step, grads in enumerate(gradient_steps(tensors, 3)):
        for rate in rates:
            rate.fill_(0.5**step)
        step_all(grads, gpu, cpu)
        assert_same(gpu, cpu)


@every_way
@either_case
def test_replays(case, options):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, options, capturable=True)
    first, *others = gradient_steps(tensors, 6)
    step_all(first, gpu, cpu)
    graph = capture(gpu)
    for grads in others:
        feed(grads, gpu, cpu)
        graph.replay()
        cpu.step()
    assert_same(gpu, cpu)


@either_case
def test_no_average_is_of_a_step_that_is_skipped(case):
    """Nor counted: the count goes to the GPU with the first step that only the GPU knows of."""
    tensors = mixed_tensors()
    options = {"ema_decay": 1, "skip_nonfinite": True}
    gpu, cpu = twins(case, tensors, options)
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        grads = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in tensors]
        if step in (0, 3):
            grads[-1].view(-1)[-1] = torch.inf
        step_all(grads, gpu, cpu)
        if step == 0:
            assert not any("ema" in states for states in gpu.state.values())
        else:
            assert_same(gpu, cpu)
            assert {(count.device.type, count.item()) for count in counts_of(gpu)} == {
                ("cuda", step - (step > 2))
            }


@either_case
@pytest.mark.parametrize("fused", [None, True])
def test_a_count_on_the_gpu_stays_there(case, fused):
    """It comes there with a scaler, or with `fused`, which is said of the group alone."""
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, {"ema_decay": 1}, fused=fused)
    for scale, grads in zip((2.0, None, 4.0, None), gradient_steps(tensors, 4), strict=True):
        feed(grads, gpu, cpu)
        for optimizer, device in ((gpu, GPU), (cpu, "cpu")):
            if scale is not None:
                optimizer.grad_scale = torch.tensor(scale, device=device)
                optimizer.found_inf = torch.tensor(0.0, device=device)
            optimizer.step()
            if scale is not None:
                del optimizer.grad_scale, optimizer.found_inf
        assert_same(gpu, cpu)
        assert {count.device.type for count in counts_of(gpu)} == {"cuda"}


@either_counts
@either_case
def test_averages_go_in_and_parameters_come_back(case, capturable):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, {"ema_decay": 0.75}, capturable=capturable)
    for grads in gradient_steps(tensors, 3):
        step_all(grads, gpu, cpu)
    before = snapshot(gpu)
    with gpu.averaged(), cpu.averaged():
        for mine, theirs in zip(params_of(gpu), params_of(cpu), strict=True):
            assert mismatches(mine, theirs) == 0
    after = snapshot(gpu)
    for place, entry in before.items():
        assert after[place]["param"] == entry["param"]
    assert_same(gpu, cpu)


@either_counts
@either_case
def test_checkpoints_of_either_device(case, capturable):
    """The count comes to where the steps are counted."""
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, {"ema_decay": 1}, capturable=capturable)
    first, second = gradient_steps(tensors, 2)
    step_all(first, gpu, cpu)
    loaded = []
    for source in (gpu, cpu):
        checkpoint = copy.deepcopy(source.state_dict())
        checkpoint["param_groups"][0]["capturable"] = capturable
        optimizer = optimizer_on(GPU, case, params_of(source), ema_decay=1)
        optimizer.load_state_dict(checkpoint)
        where = "cuda" if capturable else "cpu"
        assert {count.device.type for count in counts_of(optimizer)} == {where}
        loaded.append(optimizer)
    step_all(second, cpu, *loaded)
    for optimizer in loaded:
        assert_same(optimizer, cpu)


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_the_count_comes_to_where_the_steps_are_counted(case):
    """Also if a trainer moves all states but `step` to the GPU after it has loaded them."""
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, {"ema_decay": 1})
    first, second = gradient_steps(tensors, 2)
    step_all(first, gpu, cpu)
    for states in gpu.state.values():
        states["ema_step"] = states["ema_step"].to(GPU)
    step_all(second, gpu, cpu)
    assert_same(gpu, cpu)
    for states in gpu.state.values():
        if "step" in states:
            assert states["ema_step"].device == states["step"].device


def test_counts_that_begin_on_either_device():
    """Where the group would have a new count on the GPU, and an old one is on the host; and where
    a new count of steps is on the host."""
    tensors = [torch.randn(300).bfloat16()]
    for case, first, later in (
        (ADAM, {}, {"fused": True, "ema_decay": 1}),
        (SGD, {"ema_decay": 1, "fused": True}, {"fused": None, "state_bits": 16, "momentum": 0.9}),
    ):
        gpu, cpu = twins(case, tensors, first)
        for step, grads in enumerate(gradient_steps(tensors, 4)):
            if step == 2:
                for optimizer in (gpu, cpu):
                    optimizer.param_groups[0].update(later)
            step_all(grads, gpu, cpu)
            assert_same(gpu, cpu)


@either_case
def test_a_loaded_count_stays_where_it_is(case):
    tensors = mixed_tensors()
    gpu, cpu = twins(case, tensors, {"ema_decay": 1, "skip_nonfinite": True})
    first, second = [[torch.randn(t.shape).to(t.dtype) for t in tensors] for _ in range(2)]
    step_all(first, gpu, cpu)
    gpu.load_state_dict(copy.deepcopy(gpu.state_dict()))
    assert {count.device.type for count in counts_of(gpu)} == {"cuda"}
    gpu.param_groups[0]["capturable"] = True
    step_all(second, gpu, cpu)
    assert_same(gpu, cpu)


def test_a_count_that_is_elsewhere_is_refused():
    for place, device, capturable, error in (
        (GPU, "cpu", True, AssertionError),
        ("cpu", GPU, False, RuntimeError),
    ):
        optimizer = optimizer_on(place, SGD, mixed_tensors(), ema_decay=1, capturable=capturable)
        optimizer.step()
        for states in optimizer.state.values():
            states["ema_step"] = states["ema_step"].to(device)
        before = snapshot(optimizer)
        with pytest.raises(error, match=r"parameter group 0, parameter 0: .*state 'ema_step'"):
            optimizer.step()
        assert snapshot(optimizer) == before


def test_what_is_no_count_is_not_taken_to_the_gpu():
    gpu = optimizer_on(GPU, SGD, mixed_tensors(), ema_decay=1)
    gpu.step()
    gpu.state[params_of(gpu)[0]]["ema_step"] = torch.tensor(-1.0, dtype=torch.float64)
    gpu.skip_nonfinite = True
    with pytest.raises(ValueError, match=r"parameter 0: state 'ema_step' is not a count: tensor"):
        gpu.step()


def test_what_no_graph_can_capture():
    """A count on the host, and an average that begins, which each replay would begin anew."""
    for options, capturable, message in (
        ({"ema_decay": 1}, False, "capturable is False"),
        ({"ema_decay": 0.5}, True, "does not exist yet"),
    ):
        gpu = optimizer_on(GPU, SGD, mixed_tensors(), capturable=capturable)
        gpu.step()
        gpu.param_groups[0].update(options)
        with pytest.raises(RuntimeError, match=message):
            capture(gpu)
        torch.cuda.synchronize()


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
def test_parameters_on_every_device_at_once(capturable):
    """All GPUs, and the CPU where no graph can be captured; clipped by the norm of all."""
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    devices += [] if capturable else [torch.device("cpu")]
    tensors = mixed_tensors()
    options = {"ema_decay": 1, "l1": 0.25, "max_grad_norm": 2.0}
    params = [
        torch.nn.Parameter(tensor.to(devices[n % len(devices)], copy=True))
        for n, tensor in enumerate(tensors)
    ]
    for param in params:
        param.grad = torch.zeros_like(param)
    ours = fusedopt.Adam(params, capturable=capturable, **options)
    theirs = optimizer_on("cpu", ADAM, tensors, **options)
    theirs.param_groups[0].update(ours.param_groups[0], params=theirs.param_groups[0]["params"])
    theirs.param_groups[0]["capturable"] = False
    for grads in gradient_steps(tensors, 3):
        step_all(grads, ours, theirs)
        assert bool(ours.skipped) == bool(theirs.skipped)
    for mine, expected in zip(params, params_of(theirs), strict=True):
        assert mismatches(mine, expected) == 0
        for name, state in theirs.state[expected].items():
            assert mismatches(ours.state[mine][name], state) == 0
