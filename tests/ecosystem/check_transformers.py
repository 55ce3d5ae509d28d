"""Hugging Face's Trainer: fit, checkpoint, resume, beside torch's optimizers."""

from __future__ import annotations

import pytest
import torch
import transformers

import fusedopt
from ecosystem_helpers import (
    TORCH_ROWS,
    assert_close,
    assert_moved,
    assert_same_bits,
    options,
    schedule,
)
from fusedopt.checking.rows import ROWS
from language_models import language_model, sentences


def trainer(folder, model, **how):
    """A Trainer of six steps of two batches, with clipping, that saves in the middle."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        learning_rate=0.01,
        weight_decay=0.1,
        save_steps=3,
        logging_steps=1,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=sentences(), **how)


def fit(folder, optimizer_class, settings, seed=0, resume=None):
    model = language_model(seed)
    optimizer = optimizer_class(model.parameters(), **settings)
    run = trainer(folder, model, optimizers=(optimizer, schedule(optimizer)))
    run.train(resume_from_checkpoint=resume)
    assert run.state.global_step == 6
    return model


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_resumes_exactly(row, tmp_path):
    whole = fit(tmp_path, row.optimizer, options(row))
    assert_moved(whole, language_model())
    settings = {**options(row), "lr": 123.0}
    checkpoint = str(tmp_path / "checkpoint-3")
    resumed = fit(tmp_path / "resumed", row.optimizer, settings, seed=1, resume=checkpoint)
    assert_same_bits(resumed, whole)


@pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)
def test_same_as_torch_also_resumed_from_its_checkpoint(row, tmp_path):
    theirs = fit(tmp_path / "theirs", row.torch_optimizer, options(row))
    # The library computes the loss in float32, whatever the model's dtype.
    assert_close(fit(tmp_path / "ours", row.optimizer, options(row)), theirs, rtol=1e-5, atol=1e-7)
    checkpoint = str(tmp_path / "theirs" / "checkpoint-3")
    resumed = fit(tmp_path / "resumed", row.optimizer, options(row), seed=1, resume=checkpoint)
    assert_close(resumed, theirs, rtol=1e-5, atol=1e-7)


def test_class_and_options_instead_of_an_optimizer(tmp_path):
    """The Trainer makes the optimizer, with the groups that it thinks should decay."""
    models = []
    for optimizer_class in (fusedopt.AdamW, torch.optim.AdamW):
        model = language_model()
        run = trainer(
            tmp_path, model, optimizer_cls_and_kwargs=(optimizer_class, {"lr": 0.01, "eps": 1e-6})
        )
        run.train()
        assert len(run.optimizer.param_groups) == 2
        models.append(model)
    assert_moved(models[0], language_model())
    assert_close(*models, rtol=1e-5, atol=1e-7)
