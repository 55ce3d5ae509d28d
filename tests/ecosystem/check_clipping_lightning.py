"""Lightning leaves clipping to the optimizer, as the guide says."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities import grad_norm

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


class Module(lightning.LightningModule):
    """The network, and the norms that were found."""

    def __init__(self, which, options, dtype=torch.float64):
        super().__init__()
        self.network = network().to(dtype)
        self.which, self.options = which, options
        self.norms, self.logged, self.products = [], [], set()

    def configure_optimizers(self):
        return self.which(self.parameters(), **self.options)

    def training_step(self, batch):
        inputs, targets = (part.to(self.network[0].weight.dtype) for part in batch)
        outputs = self.network(inputs)
        self.products.add(outputs.dtype)
        return (outputs - targets).square().mean()

    def on_before_optimizer_step(self, optimizer):
        """Ahead of clipping, where Lightning's own example logs the norm."""
        self.logged.append(grad_norm(self, 2)["grad_2.0_norm_total"])

    def on_train_batch_end(self, *batch):
        if len(self.logged) > len(self.norms):
            self.norms.append(self.optimizers().grad_norm)


def trained(which, options, clip=None, accumulate=2, dtype=torch.float64, **how):
    """Two epochs of six batches."""
    module = Module(which, options, dtype)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **how,
    )
    trainer.fit(module, torch.utils.data.DataLoader(dataset(), batch_size=4))
    assert len(module.norms) == len(module.logged) == 12 // accumulate
    return module


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("which", "options"), CLIPPED, ids=["SGD", "AdamW"])
def test_clips_as_lightning_does(which, options, accumulate):
    clips = {**options, "max_grad_norm": MAX_NORM}
    ours = trained(which, clips, accumulate=accumulate)
    theirs = trained(which, options, MAX_NORM, accumulate=accumulate)
    neither = trained(which, options, accumulate=accumulate)
    assert max(ours.norms) > MAX_NORM
    assert_moved(ours.network, network())
    assert_close(ours, theirs)
    assert_differs(neither, theirs)
    # Lightning gathers the norms of tensors in float32.
    assert_same_norms(ours.norms, ours.logged, ours, torch.float32)


def test_clips_in_mixed_precision():
    """Where Lightning refuses to, also without a scaler, unless the optimizer is not fused."""
    options = {"lr": 0.1, "momentum": 0.8}
    how = {"dtype": torch.float32, "precision": "bf16-mixed"}
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        trained(fusedopt.SGD, options, MAX_NORM, **how)
    ours = trained(fusedopt.SGD, {**options, "max_grad_norm": MAX_NORM}, **how)
    theirs = trained(fusedopt.SGD, {**options, "fused": False}, MAX_NORM, **how)
    assert ours.products == {torch.bfloat16}
    assert max(ours.norms) > MAX_NORM
    # Where rounding of a weight changes its bfloat16, gradients differ by 2^-8.
    assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert_same_norms(ours.norms, ours.logged, ours, torch.float32)


def test_clips_with_a_scaler():
    """Where Lightning refuses to, because the step unscales. Autocast leaves float64 as it is."""

    def scaled(options, clip=None):
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return trained(fusedopt.SGD, options, clip, plugins=[plugin])

    options = {"lr": 0.1, "momentum": 0.8}
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        scaled(options, MAX_NORM)
    ours = scaled({**options, "max_grad_norm": MAX_NORM})
    theirs = trained(fusedopt.SGD, options, MAX_NORM)
    assert_close(ours, theirs)
    assert_same_norms(ours.norms, [norm / 1024.0 for norm in ours.logged], ours, torch.float32)


def test_clipping_twice():
    """The second factor is 1 - 1e-6/max_norm at least, and the norm is that of what is left."""
    options = {"lr": 0.1, "momentum": 0.8}
    twice = trained(fusedopt.SGD, {**options, "max_grad_norm": MAX_NORM}, MAX_NORM)
    once = trained(fusedopt.SGD, options, MAX_NORM)
    moved = 6 * 5 * options["lr"] * MAX_NORM  # six steps, with a momentum that adds up to 5
    assert_close(twice, once, rtol=0, atol=moved * 1e-6 / MAX_NORM)
    left = [min(norm, MAX_NORM * norm / (norm + 1e-6)) for norm in twice.logged]
    assert_same_norms(twice.norms, left, twice, torch.float32)


def test_lightnings_wrapper_says_the_norm_and_refuses_options():
    module = trained(fusedopt.AdamW, {"max_grad_norm": MAX_NORM})
    wrapper, optimizer = module.optimizers(), module.optimizers(use_pl_optimizer=False)
    assert torch.equal(wrapper.grad_norm, optimizer.grad_norm)
    with pytest.raises(AttributeError, match="max_grad_norm can be set on the optimizer only"):
        wrapper.max_grad_norm = 0.5
    optimizer.max_grad_norm = 0.5
    assert wrapper.max_grad_norm == 0.5


def test_the_guides_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"lightning": lightning, "loss_fn": torch.nn.functional.mse_loss, "model": network()}
    names["loader"] = torch.utils.data.DataLoader(dataset(), batch_size=4)
    names = run_guide("lightning", names)
    assert names["trainer"].callback_metrics["grad_norm"] > 0.0
    assert_moved(names["model"], network())
