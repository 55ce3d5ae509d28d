"""With accelerate the optimizer clips, as the guide says."""

from __future__ import annotations

import math

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

import fusedopt
from ecosystem_helpers import (
    CLIPPED,
    MAX_NORM,
    assert_close,
    assert_differs,
    assert_moved,
    assert_same_norms,
    dataset,
    network,
    run_guide,
)


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps what the first Accelerator was told for all that follow."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def with_accelerate(accelerator, model):
    return accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)


def with_our_function(accelerator, model):
    accelerator.unscale_gradients()
    return fusedopt.clip_grad_norm_(model.parameters(), MAX_NORM)


class Run:
    """Two epochs of six batches; who clips, and the norms that were found.

    A scaler makes the accelerator one of float16, which it refuses to be on the CPU; autocast is
    left out, so that only the scaler makes a difference.
    """

    def __init__(self, which, options, clip=None, accumulate=2, bf16=False, scaler=None):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(
            cpu=True,
            gradient_accumulation_steps=accumulate,
            mixed_precision="bf16" if bf16 else "no",
        )
        accelerator.scaler = scaler
        dtype = torch.float32 if bf16 else torch.float64
        model = network().to(dtype)
        self.optimizer = which(model.parameters(), **options)
        loader = torch.utils.data.DataLoader(dataset(), batch_size=4)
        self.model, self.wrapper, loader = accelerator.prepare(model, self.optimizer, loader)
        if scaler is not None:
            accelerator.native_amp = True
            accelerator.state._mixed_precision = "fp16"
        self.norms, self.clipped = [], []
        for inputs, targets in [*loader, *loader]:
            with accelerator.accumulate(self.model):
                self.outputs = self.model(inputs.to(dtype))
                accelerator.backward((self.outputs - targets.to(dtype)).square().mean())
                if clip is not None and accelerator.sync_gradients:
                    self.clipped.append(clip(accelerator, self.model))
                self.wrapper.step()
                if accelerator.sync_gradients:
                    self.norms.append(self.wrapper.optimizer.grad_norm)
                self.wrapper.zero_grad()


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("which", "options"), CLIPPED, ids=["SGD", "AdamW"])
def test_clips_as_accelerate_does(which, options, accumulate):
    clips = {**options, "max_grad_norm": MAX_NORM}
    ours = Run(which, clips, accumulate=accumulate)
    theirs = Run(which, options, with_accelerate, accumulate=accumulate)
    neither = Run(which, options, accumulate=accumulate)
    assert len(ours.norms) == 12 // accumulate
    assert max(ours.norms) > MAX_NORM
    assert_moved(ours.model, network())
    assert_close(ours.model, theirs.model)
    assert_differs(neither.model, theirs.model)
    # The same norms up to what differs between the runs by then.
    torch.testing.assert_close(
        torch.stack(ours.norms), torch.stack(theirs.clipped), rtol=1e-9, atol=0
    )


def test_clips_in_mixed_precision():
    options = {"lr": 0.1, "momentum": 0.8}
    ours = Run(fusedopt.SGD, {**options, "max_grad_norm": MAX_NORM}, bf16=True)
    theirs = Run(fusedopt.SGD, options, with_accelerate, bf16=True)
    assert max(ours.norms) > MAX_NORM
    # Where rounding of a weight changes its bfloat16, gradients differ by 2^-8.
    assert_close(ours.model, theirs.model, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("clip", [with_accelerate, with_our_function])
def test_clipping_twice(clip):
    """The second factor is 1 - 1e-6/max_norm at least, and the norm is that of what is left."""
    options = {"lr": 0.1, "momentum": 0.8}
    twice = Run(fusedopt.SGD, {**options, "max_grad_norm": MAX_NORM}, clip)
    once = Run(fusedopt.SGD, options, with_accelerate)
    moved = 6 * 5 * options["lr"] * MAX_NORM  # six steps, with a momentum that adds up to 5
    assert_close(twice.model, once.model, rtol=0, atol=moved * 1e-6 / MAX_NORM)
    for norm, before in zip(twice.norms, twice.clipped, strict=True):
        left = MAX_NORM * before / (before + 1e-6) if before > MAX_NORM else before
        torch.testing.assert_close(norm, left.double(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_our_function_in_a_loop(scaled):
    """Under a scaler gradients have to be unscaled first."""
    which, options = CLIPPED[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    ours = Run(which, options, with_our_function, scaler=scaler)
    theirs = Run(which, options, with_accelerate)
    assert_close(ours.model, theirs.model)
    assert_same_norms(ours.clipped[:1], theirs.clipped[:1], ours.model)


def test_the_step_clips_what_it_unscales():
    which, options = CLIPPED[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ours = Run(which, {**options, "max_grad_norm": MAX_NORM}, scaler=scaler)
    theirs = Run(which, options, with_accelerate)
    assert_close(ours.model, theirs.model)
    assert_same_norms(ours.norms[:1], theirs.clipped[:1], ours.model)


def test_the_wrapper_is_not_the_optimizer():
    run = Run(fusedopt.AdamW, {"max_grad_norm": MAX_NORM})
    assert not hasattr(run.wrapper, "grad_norm")
    run.wrapper.max_grad_norm = math.inf
    assert run.optimizer.max_grad_norm == MAX_NORM
    assert run.wrapper.optimizer is run.optimizer


def test_the_guides_block():
    names = run_guide(
        "accelerate",
        {
            "accelerator": accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2),
            "model": network(),
            "loader": torch.utils.data.DataLoader(dataset(), batch_size=4),
            "loss_fn": torch.nn.functional.mse_loss,
        },
    )
    assert names["norm"] > 0.0
    assert_moved(names["model"], network())
