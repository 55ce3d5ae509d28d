"""The example that stores in fewer bytes: its trainings, its comparison, and what is published."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = ROOT / "docs" / "guides" / "less-memory.md"
[PUBLISHED] = (EXAMPLES / "results").glob("fewer_bytes*.json")


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("fewer_bytes")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def losses_with_torch(task, steps, lr, seed):
    """A loop with torch's optimizer and torch's schedule."""
    torch.manual_seed(seed)
    model, batches = task.start(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    losses = []
    for inputs, targets in itertools.islice(batches, steps):
        optimizer.zero_grad()
        loss = task.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["digits", "text", "long"])
def test_in_float32_the_training_is_torchs(example, name):
    assert set(example.TASKS) == {"digits", "text", "long"}
    task, steps, lr = example.TASKS[name], 20, 0.003
    losses = losses_with_torch(task, steps, lr, seed=1)
    trained = example.final_loss(example.Training(name, "AdamW", "float32", steps, lr, seed=1))
    assert trained == pytest.approx(sum(losses[-2:]) / 2, rel=1e-4)


@pytest.mark.parametrize("name", ["digits", "text", "long"])
def test_every_way_stores_something_else(example, name):
    """So each ends elsewhere, though not far; and eight bits are eight bits in every network."""
    kinds = [(name, "Adam", way, 10, 0.003) for way in example.WAYS]
    losses = [example.final_loss(example.Training(*kind, seed=0)) for kind in kinds]
    assert len(set(losses)) == len(example.WAYS)
    assert losses == pytest.approx([losses[0]] * len(losses), rel=0.05)


def result(way, *losses, task="digits", optimizer="SGD"):
    return {
        "task": task, "optimizer": optimizer, "way": way, "steps": 460, "lr": 0.1,
        "losses": list(losses),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "where", "said"),
    [
        ((1.0, 2.0, 3.0), "within", "+0.0%"),
        ((3.0, 3.0, 3.0), "within", "+50.0%"),
        ((1.0, 1.0, 8.0), "higher", "**+66.7%**"),
        ((0.9, 0.9, 1.1), "lower", "**-51.7%**"),
        ((1.0, 2.0, float("nan")), "higher", "**NaN**"),
    ],
)
def test_the_mean_is_compared_with_the_seeds_of_float32(example, losses, where, said):
    results = [result("float32", 3.0, 1.0, 2.0), result("bfloat16", *losses)]
    standing = example.compare(results)["digits", "SGD"]["bfloat16"]
    assert standing.where == where
    assert str(standing) == said


def run(example, *arguments):
    """The command, here; it trains in processes of its own."""
    app = typer.Typer()
    app.command()(example.main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_tables_and_pictures_are_the_same_from_a_file(example, tmp_path):
    """Of the script, which trains, and of the command in this process."""
    file = tmp_path / "losses.json"
    arguments = ["--seeds", "2", "--shorter", "100", "--only", "SGD", "--workers", "1"]
    trained = subprocess.run(
        [sys.executable, EXAMPLES / "fewer_bytes.py", *arguments, "--json", file, "--plot",
         tmp_path / "a"],
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    report = json.loads(file.read_text())
    assert report["settings"] == {"seeds": 2, "shorter": 100}
    assert report["machine"]["torch"] == torch.__version__
    assert [r["steps"] for r in report["results"]] == [4] * 7 + [4] * 7 + [100] * 7

    read = run(example, "--from", file, "--plot", tmp_path / "b")
    assert read.exit_code == 0, read.output
    assert read.stdout.replace("/b/", "/a/") == trained.stdout
    for theme in ("light", "dark"):
        name = f"fewer-bytes-{theme}.svg"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("option", ["--only", "--task"])
def test_unknown_names_are_refused(example, option):
    refused = run(example, option, "sine")
    assert refused.exit_code == 2
    assert "sine is not one of" in refused.output


def test_published_losses_are_complete(example):
    report = json.loads(PUBLISHED.read_text())
    seeds = report["settings"]["seeds"]
    assert seeds >= 5
    assert report["settings"]["shorter"] == 1
    found = [(r["task"], r["optimizer"], r["way"]) for r in report["results"]]
    assert found == list(itertools.product(example.TASKS, example.OPTIMIZERS, example.WAYS))
    for trained in report["results"]:
        task = example.TASKS[trained["task"]]
        assert (trained["steps"], trained["lr"]) == (task.steps, task.rates[trained["optimizer"]])
        assert len(trained["losses"]) == seeds


def test_the_guide_says_what_the_published_losses_say(example):
    """If not: ``python examples/fewer_bytes.py --from examples/results/fewer_bytes-….json``."""
    report, guide = json.loads(PUBLISHED.read_text()), GUIDE.read_text()
    assert example.summary(report) in guide
    assert example.details(report) in guide
    assert PUBLISHED.name in guide


def test_the_guides_sentences_have_the_published_numbers(example):
    compared = example.compare(json.loads(PUBLISHED.read_text())["results"])
    guide = GUIDE.read_text()
    digits = {name: ways for (task, name), ways in compared.items() if task == "digits"}
    times = [1 + ways["bfloat16"].ratio for ways in digits.values()]
    assert f"on digits the loss is {min(times):.1f} to {max(times):.1f} times" in guide

    coded = "float32, 8-bit states", "bfloat16, master, 8-bit states"
    outside = {
        (key, way)
        for key, ways in compared.items()
        for way, standing in ways.items()
        if standing.where != "within" and way != "bfloat16"
    }
    assert outside == {(("long", "AdamW"), way) for way in coded}
    higher, with_masters = (compared["long", "AdamW"][way].ratio for way in coded)
    assert f"{higher:.1%} higher, and {with_masters:.1%} with masters" in guide
    lower = [-ways[way].ratio for name, ways in digits.items() if name != "SGD" for way in coded]
    assert f"{min(lower):.1%} to {max(lower):.1%} lower" in guide
