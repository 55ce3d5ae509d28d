"""torch.amp.GradScaler on the GPU: unscaled, counted and skipped in the kernel, bits of the CPU."""

from __future__ import annotations

import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES
from gpu_helpers import GPU, LARGEST_CASES, assert_same, mismatches, params_of, step_all, twins

INFINITE = (0, 1, 4, 7)  # steps, the first one included
STEPS = 10


def make_scaler(device, init_scale=1024.0):
    """A scaler that is ready without a backward pass and grows at every second step."""
    scaler = torch.amp.GradScaler(device, init_scale=init_scale, growth_interval=2)
    scaler.scale(torch.ones((), device=device))
    return scaler


def gradients_of(tensors, step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(t.shape, generator=generator).to(t.dtype) for t in tensors]


def feed_scaled(optimizer, grads, scale, infinite):
    """Gradients as a backward pass of the scaled loss leaves them."""
    for param, grad in zip(params_of(optimizer), grads, strict=True):
        param.grad.copy_(grad * scale)
    if infinite:
        params_of(optimizer)[1].grad.view(-1)[3] = float("inf")


def scaled_step(optimizer, scaler, grads, infinite, unscale=False):
    feed_scaled(optimizer, grads, scaler.get_scale(), infinite)
    if unscale:
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def assert_same_params(gpu, cpu):
    for mine, theirs in zip(params_of(gpu), params_of(cpu), strict=True):
        assert mismatches(mine, theirs) == 0


@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale"])
@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_finite_and_infinite_gradients(case, dtype, capturable, unscale):
    if unscale and dtype == torch.float16:
        return  # which torch's unscale_ refuses
    torch.manual_seed(0)
    tensors = [torch.randn(size).to(dtype) for size in (7, 100, 5000)]
    gpu, cpu = twins(case, tensors, capturable=capturable)
    on_gpu, on_cpu = make_scaler("cuda", 8.0), make_scaler("cpu", 8.0)
    for step in range(STEPS):
        infinite = step in INFINITE
        grads = gradients_of(tensors, step)
        scaled_step(gpu, on_gpu, grads, infinite, unscale)
        scaled_step(cpu, on_cpu, grads, infinite, unscale)
        assert on_gpu.get_scale() == on_cpu.get_scale()
        if infinite:
            assert_same_params(gpu, cpu)
            continue
        assert_same(gpu, cpu, f"step {step}")
        for param, grad in zip(params_of(gpu), grads, strict=True):
            assert mismatches(param.grad, grad) == 0  # unscaled; the scale is a power of two
    taken = STEPS - len(INFINITE)
    counts = [state["step"].item() for state in gpu.state.values() if "step" in state]
    assert set(counts) <= {taken}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_skipped_first_step_changes_nothing(case):
    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in (7, 100, 5000)]
    gpu, cpu = twins(case, tensors)
    scaler = make_scaler("cuda")
    for _ in range(2):
        scaled_step(gpu, scaler, gradients_of(tensors, 0), infinite=True)
        assert_same_params(gpu, cpu)
        for param in params_of(gpu):
            assert gpu.state.get(param, {}).get("step", torch.zeros(())).item() == 0
    for step in range(3):
        grads = gradients_of(tensors, step)
        scaled_step(gpu, scaler, grads, infinite=False)
        step_all(grads, cpu)  # never scaled, never skipped
    assert_same(gpu, cpu)


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_plain_steps_before_and_after_scaled_ones(case):
    """Step counts move to the GPU, where the kernel counts, and stay right."""
    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in (7, 100, 5000)]
    gpu, cpu = twins(case, tensors)
    scaler = make_scaler("cuda")
    for step in range(12):
        grads = gradients_of(tensors, step)
        if step % 4 < 2:
            step_all(grads, gpu)
        else:
            scaled_step(gpu, scaler, grads, infinite=step % 4 == 3)
        if step % 4 != 3:
            step_all(grads, cpu)
    assert_same(gpu, cpu)


@pytest.mark.parametrize("scale", [3.0, 1e-3, 65536.0 * 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16],
                         ids=str)  # fmt: skip
def test_any_scale(scale, dtype):
    """What the scaler assigns, with a scale that rounds; gradients too have the CPU's bits."""
    for case in LARGEST_CASES:
        torch.manual_seed(0)
        tensors = [torch.randn(size).to(dtype) for size in (9, 100, 5001)]
        optimizers = twins(case, tensors)
        for step in range(4):
            grads = gradients_of(tensors, step)
            for optimizer in optimizers:
                feed_scaled(optimizer, grads, 1.0, infinite=False)
                device = params_of(optimizer)[0].device
                optimizer.grad_scale = torch.tensor(scale, device=device)
                optimizer.found_inf = torch.tensor(float(step == 2), device=device)
                optimizer.step()
                del optimizer.grad_scale, optimizer.found_inf
        assert_same(*optimizers, str(case))
        for mine, theirs in zip(*map(params_of, optimizers), strict=True):
            assert mismatches(mine.grad, theirs.grad) == 0


def test_a_scaled_step_does_not_synchronise():
    optimizers = twins(LARGEST_CASES[0], [torch.randn(100)])
    scaler = make_scaler("cuda")
    for _ in range(2):
        scaled_step(optimizers[0], scaler, gradients_of([torch.randn(100)] * 1, 0), infinite=False)
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(700_000_000)
    done.record()
    scaler.step(optimizers[0])
    scaler.update()
    assert not done.query()
    torch.cuda.synchronize()


def test_autocast_training():
    """A network in mixed precision learns, and its scaler skips what overflows."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
    ).to(GPU)
    optimizer = fusedopt.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    inputs = torch.randn(256, 16, device=GPU)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            outputs = model(inputs)
        loss = (outputs.float() - inputs.sum(1, keepdim=True)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert scaler.get_scale() < 2.0**40
    steps = {state["step"].item() for state in optimizer.state.values()}
    assert len(steps) == 1
    assert 50 < steps.pop() < 100
