"""Lightning: fit, with the closure that it passes to step; checkpoint; resume."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

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


class Module(lightning.LightningModule):
    """The network, trained with an optimizer of some class."""

    def __init__(self, optimizer_class, settings, seed=0):
        super().__init__()
        self.network = network(seed)
        self.optimizer_class, self.settings = optimizer_class, settings

    def training_step(self, batch):
        inputs, targets = batch
        return (self.network(inputs) - targets).square().mean()

    def configure_optimizers(self):
        optimizer = self.optimizer_class(self.parameters(), **self.settings)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"},
        }


def fit(folder, module, epochs, checkpoint=None, **how):
    """Epochs of three steps, of two batches each."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **how,
    )
    loader = torch.utils.data.DataLoader(dataset(), batch_size=4)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    assert trainer.global_step == 3 * epochs
    return trainer


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_resumes_exactly(row, tmp_path):
    whole = Module(row.optimizer, options(row))
    fit(tmp_path, whole, 2, gradient_clip_val=0.1)
    assert_moved(whole.network, network())
    checkpoint = tmp_path / "middle.ckpt"
    half = Module(row.optimizer, options(row))
    fit(tmp_path, half, 1, gradient_clip_val=0.1).save_checkpoint(checkpoint)
    resumed = Module(row.optimizer, {**options(row), "lr": 123.0}, seed=1)
    fit(tmp_path, resumed, 2, checkpoint, gradient_clip_val=0.1)
    assert_same_bits(resumed, whole)


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_same_as_torch(row, tmp_path):
    modules = [Module(which, options(row)) for which in (row.optimizer, row.torch_optimizer)]
    for module in modules:
        fit(tmp_path, module, 2, gradient_clip_val=0.1)
    assert_moved(modules[0].network, network())
    assert_close(*modules)


def test_scaler(tmp_path):
    """With optimizers that unscale by themselves, such as torch's fused ones, it cannot clip.

    Autocast leaves float64 as it is, so that only the scaler makes a difference.
    """

    def trained(optimizer_class, by_scaler, **how):
        module = Module(optimizer_class, {"lr": 0.01})
        configured = module.configure_optimizers()
        if by_scaler:
            configured["optimizer"]._step_supports_amp_scaling = False
        module.configure_optimizers = lambda: configured
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        fit(tmp_path, module, 2, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **how)
        return module

    assert_close(trained(fusedopt.Adam, False), trained(torch.optim.Adam, False))
    clip = {"gradient_clip_val": 0.1}
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        trained(fusedopt.Adam, False, **clip)
    assert_close(trained(fusedopt.Adam, True, **clip), trained(torch.optim.Adam, False, **clip))
