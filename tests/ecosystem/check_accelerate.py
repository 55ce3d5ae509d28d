"""Hugging Face's accelerate: prepare, accumulation, clipping, checkpoints, mixed precision."""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState

import fusedopt
from ecosystem_helpers import (
    TORCH_ROWS,
    assert_close,
    assert_moved,
    assert_same_bits,
    dataset,
    network,
    options,
    schedule,
)
from fusedopt.checking.rows import ROWS


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps what the first Accelerator was told for all that follow."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


class Training:
    """A model, optimizer, schedule and loader, prepared."""

    def __init__(self, optimizer_class, settings, seed=0, dtype=torch.float64, **how):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2, **how)
        self.dtype = dtype
        model = network(seed).to(dtype)
        optimizer = optimizer_class(model.parameters(), **settings)
        loader = torch.utils.data.DataLoader(dataset(), batch_size=4)
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            model, optimizer, loader, schedule(optimizer)
        )

    def epoch(self):
        """Three steps, of two batches each."""
        for inputs, targets in self.loader:
            with self.accelerator.accumulate(self.model):
                outputs = self.model(inputs.to(self.dtype))
                loss = (outputs - targets.to(self.dtype)).square().mean()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.1)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        return self


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_same_as_torch(row):
    models = [
        Training(optimizer_class, options(row)).epoch().epoch().model
        for optimizer_class in (row.optimizer, row.torch_optimizer)
    ]
    assert_moved(models[0], network())
    assert_close(*models)


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_mixed_precision(row):
    how = {"dtype": torch.float32, "mixed_precision": "bf16"}
    models = []
    for optimizer_class in (row.optimizer, row.torch_optimizer):
        training = Training(optimizer_class, options(row), **how)
        products = []
        training.model[0].register_forward_hook(lambda *a, to=products: to.append(a[2].dtype))
        models.append(training.epoch().epoch().model)
        assert set(products) == {torch.bfloat16}
    assert_moved(models[0], network().float())
    # Where rounding of a weight changes its bfloat16, gradients differ by 2^-8.
    assert_close(*models, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_resumes_exactly(row, tmp_path):
    whole = Training(row.optimizer, options(row)).epoch()
    whole.accelerator.save_state(str(tmp_path))
    whole.epoch()
    resumed = Training(row.optimizer, {**options(row), "lr": 123.0}, seed=1)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch()
    assert_same_bits(resumed.model, whole.model)


@pytest.mark.parametrize("by_scaler", [False, True])
def test_scaler_skips_a_step(by_scaler):
    """accelerate makes no scaler on the CPU, so its optimizer is given one.

    It takes a step for skipped when the scaler did not call it, which a scaler always does with
    optimizers that skip by themselves, such as torch's fused ones.
    """
    accelerate.Accelerator(cpu=True)
    model, plain = network(), network()
    inner = fusedopt.Adam(model.parameters())
    if by_scaler:
        inner._step_supports_amp_scaling = False
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    plain_optimizer = fusedopt.Adam(plain.parameters())
    for factor in (float("inf"), 1.0, 2.0, float("nan"), 3.0):
        optimizer.zero_grad()
        scaler.scale(sum((factor * p).sum() for p in model.parameters())).backward()
        optimizer.step()
        skipped = factor not in (1.0, 2.0, 3.0)
        assert optimizer.step_was_skipped == (skipped and by_scaler)
        if not skipped:
            for p in plain.parameters():
                p.grad = torch.full_like(p, factor)
            plain_optimizer.step()
        assert_same_bits(model, plain)
