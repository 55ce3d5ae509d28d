"""The example of learning-rate schedules: its curves, and its command line."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

EXAMPLES = Path(__file__).parents[2] / "examples"
[PUBLISHED] = (EXAMPLES / "results").glob("digits_curves*.json")

EPOCHS = 6
SHARES = {
    "constant": [1] * EPOCHS,
    "step": [1, 1, 0.2, 0.2, 0.04, 0.04],
    "cosine": [(1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)],
    "linear": [1 - epoch / EPOCHS for epoch in range(EPOCHS)],
    "inverse square root": [1 / math.sqrt(1 + epoch) for epoch in range(EPOCHS)],
}


@pytest.fixture(scope="module")
def curves():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("digits_curves")


@pytest.fixture(autouse=True)
def threads_are_put_back():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("schedule", SHARES)
def test_rates_follow_their_schedule(curves, schedule):
    assert curves.SCHEDULES.keys() == SHARES.keys()
    [curve] = curves.train_all([schedule], ["Nesterov"], EPOCHS, seeds=1)
    first = curves.digits.OPTIMIZERS["Nesterov"].lr
    assert curve.lr == pytest.approx([first * share for share in SHARES[schedule]])
    assert curve.loss[-1] < curve.loss[0] / 2
    assert curve.accuracy[-1] > 0.9


def test_without_decay_the_training_is_that_of_the_other_example(curves):
    digits = curves.digits
    data = digits.load_data()
    expected = digits.start_trainings(digits.OPTIMIZERS["Adam"], seed=0)["fusedopt"]
    for _ in digits.train_side_by_side({"fusedopt": expected}, data, epochs=2, seed=0):
        pass
    training, scheduler = curves.start("Adam", "constant", epochs=2, seed=0)
    curves.train(training, scheduler, data, epochs=2, seed=0)
    assert training.losses == expected.losses


def invoke(curves, *arguments):
    app = typer.Typer()
    app.command()(curves.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pictures_are_the_same_from_a_file(curves, tmp_path):
    file = tmp_path / "curves.json"
    trained = invoke(
        curves, "--epochs", 2, "--seeds", 2, "--only", "AdamW", "--schedule", "cosine",
        "--schedule", "step", "--json", file, "--plot", tmp_path / "a",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.output
    report = json.loads(file.read_text())
    assert report["settings"] == {"epochs": 2, "batch_size": 64, "seed": 0, "seeds": 2}
    assert [curve["schedule"] for curve in report["results"]] == ["cosine", "step"]

    read = invoke(curves, "--from", file, "--plot", tmp_path / "b")
    assert read.exit_code == 0, read.output
    for theme in ("light", "dark"):
        name = f"digits-curves-{theme}.svg"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("option", ["--only", "--schedule"])
def test_unknown_names_are_refused(curves, option):
    refused = invoke(curves, option, "sine")
    assert refused.exit_code == 2
    assert "sine is not one of" in refused.output


def test_published_curves_are_complete(curves):
    report = json.loads(PUBLISHED.read_text())
    found = {(curve["schedule"], curve["optimizer"]) for curve in report["results"]}
    optimizers = {optimizer for _, optimizer in found}
    assert optimizers <= set(curves.digits.OPTIMIZERS)
    assert found == {(s, o) for s in curves.SCHEDULES for o in optimizers}
    for curve in report["results"]:
        assert curve["lr"][0] == pytest.approx(curves.digits.OPTIMIZERS[curve["optimizer"]].lr)
        assert len(curve["loss"]) == report["settings"]["epochs"] == curves.digits.EPOCHS
