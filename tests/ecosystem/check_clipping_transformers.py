"""Hugging Face's Trainer leaves clipping to the optimizer, as the guide says."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

import fusedopt
from ecosystem_helpers import (
    assert_close,
    assert_differs,
    assert_moved,
    assert_same_norms,
    run_guide,
)
from language_models import language_model, sentences

MAX_NORM = 0.5
CLASSES = [(fusedopt.SGD, {"lr": 0.1, "momentum": 0.8}), (fusedopt.AdamW, {"lr": 0.01})]

# The library computes the loss in float32, whatever the model's dtype, and a weight that differs in
# its last bits may round otherwise there: 6e-8 of the logits, and as much of a gradient.
FLOAT32_LOSS = {"rtol": 1e-5, "atol": 1e-7}
# Where rounding of an activation changes its bfloat16, gradients differ by 2^-8.
BFLOAT16 = {"rtol": 1e-3, "atol": 1e-4}


class Norms(transformers.TrainerCallback):
    """What the optimizer has measured, read where a user's callback reads it."""

    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, optimizer, **_):
        self.found.append(optimizer.optimizer.grad_norm)


class Run:
    """Six steps of two batches; by whom they are clipped, and what is logged."""

    def __init__(self, folder, by_trainer, model=None, bf16=False, **how):
        self.model = language_model() if model is None else model
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            max_grad_norm=by_trainer,
            lr_scheduler_type="constant",
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=bf16,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
        )
        norms = Norms()
        if "optimizer_cls_and_kwargs" not in how:
            optimizer_class, options = how.pop("optimizer")
            how["optimizers"] = (optimizer_class(self.model.parameters(), **options), None)
        self.trainer = transformers.Trainer(
            self.model, arguments, train_dataset=sentences(), callbacks=[norms], **how
        )
        self.trainer.train()
        assert self.trainer.state.global_step == 6
        self.norms = norms.found
        log = self.trainer.state.log_history
        self.logged = [entry["grad_norm"] for entry in log if "grad_norm" in entry]
        assert len(self.norms) == len(self.logged) == 6


@pytest.mark.parametrize(("which", "options"), CLASSES, ids=["SGD", "AdamW"])
def test_clips_as_the_trainer_does(tmp_path, which, options):
    clips = {**options, "max_grad_norm": MAX_NORM}
    ours = Run(tmp_path, 0, optimizer=(which, clips))
    theirs = Run(tmp_path, MAX_NORM, optimizer=(which, options))
    neither = Run(tmp_path, 0, optimizer=(which, options))
    assert all(norm > MAX_NORM for norm in ours.norms)
    assert_moved(ours.model, language_model())
    assert_close(ours.model, theirs.model, **FLOAT32_LOSS)
    assert_differs(neither.model, theirs.model, **FLOAT32_LOSS)
    assert_same_norms(ours.norms, ours.logged, ours.model)


def test_clips_in_mixed_precision(tmp_path):
    options = {"lr": 0.1, "momentum": 0.8}
    clips = {**options, "max_grad_norm": MAX_NORM}
    models = [language_model().float() for _ in range(2)]
    products = set()
    models[0].model.layers[0].mlp.up_proj.register_forward_hook(
        lambda *arguments: products.add(arguments[2].dtype)
    )
    ours = Run(tmp_path, 0, models[0], bf16=True, optimizer=(fusedopt.SGD, clips))
    theirs = Run(tmp_path, MAX_NORM, models[1], bf16=True, optimizer=(fusedopt.SGD, options))
    assert products == {torch.bfloat16}
    assert all(norm > MAX_NORM for norm in ours.norms)
    assert_close(ours.model, theirs.model, **BFLOAT16)
    assert_same_norms(ours.norms, ours.logged, ours.model, torch.float32)


def test_clipping_twice(tmp_path):
    """The second factor is 1 - 1e-6/max_norm at least."""
    options = {"lr": 0.1, "momentum": 0.8}
    clips = {**options, "max_grad_norm": MAX_NORM}
    twice = Run(tmp_path, MAX_NORM, optimizer=(fusedopt.SGD, clips))
    once = Run(tmp_path, MAX_NORM, optimizer=(fusedopt.SGD, options))
    moved = 6 * 5 * options["lr"] * MAX_NORM  # six steps, with a momentum that adds up to 5
    tolerance = FLOAT32_LOSS["atol"] + moved * 1e-6 / MAX_NORM
    assert_close(twice.model, once.model, rtol=FLOAT32_LOSS["rtol"], atol=tolerance)
    for norm, logged in zip(twice.norms, twice.logged, strict=True):
        assert logged > MAX_NORM
        assert MAX_NORM - 2e-6 < norm < MAX_NORM


def test_the_trainer_makes_the_optimizer(tmp_path):
    clips = {"lr": 0.01, "max_grad_norm": MAX_NORM}
    run = Run(tmp_path, 0, optimizer_cls_and_kwargs=(fusedopt.AdamW, clips))
    assert len(run.trainer.optimizer.param_groups) == 2
    assert torch.equal(run.trainer.optimizer.optimizer.grad_norm, run.norms[-1])
    assert_same_norms(run.norms, run.logged, run.model)


def test_none_does_not_turn_it_off(tmp_path):
    with pytest.raises(TypeError, match="NoneType"):
        Run(tmp_path, None, optimizer=(fusedopt.AdamW, {}))


def test_an_infinite_gradient_is_nan_when_the_step_measures_it_and_is_skipped(tmp_path):
    model = language_model()
    calls = []

    def spoil(grad):
        calls.append(model.lm_head.weight.detach().clone())
        return grad.index_fill(0, torch.tensor([3]), math.inf) if len(calls) == 4 else grad

    model.lm_head.weight.register_hook(spoil)
    clips = {"lr": 0.01, "max_grad_norm": MAX_NORM, "skip_nonfinite": True}
    run = Run(tmp_path, 0, model, optimizer=(fusedopt.AdamW, clips))
    assert [norm.isnan().item() for norm in run.norms] == [False, True] + [False] * 4
    assert math.isinf(run.logged[1])
    assert torch.equal(calls[2], calls[4])  # batches of the skipped step, and of the one after it
    assert not torch.equal(calls[4], calls[6])
    assert all(p.isfinite().all() for p in model.parameters())


def test_the_guides_block(tmp_path):
    names = {"transformers": transformers, "folder": str(tmp_path), "dataset": sentences()}
    names = run_guide("transformers", {**names, "model": language_model()})
    names["trainer"].train()
    assert names["optimizer"].max_grad_norm == 1.0
    assert names["optimizer"].grad_norm > 0.0
    assert_moved(names["model"], language_model())
