"""The example that times ways to clear gradients: its steps, its ratios, and what is published."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PAGE = ROOT / "docs" / "performance.md"
[PUBLISHED] = (EXAMPLES / "results").glob("which_zero_grad*.json")


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        yield importlib.import_module("which_zero_grad")


def test_gradients_are_cleared_as_the_way_says(example, monkeypatch):
    monkeypatch.setitem(
        example.TRAINED,
        "tiny",
        (lambda: torch.nn.Linear(3, 2), lambda: (torch.randn(4, 3), torch.randint(2, (4,))), 1),
    )
    left = {}
    for way, clear in example.CLEARED.items():

        def note(optimizer, way=way, clear=clear):
            clear(optimizer)
            grads = [param.grad for param in optimizer.param_groups[0]["params"]]
            left.setdefault(way, []).append([g if g is None else g.abs().sum() for g in grads])

        monkeypatch.setitem(example.CLEARED, way, note)
        seconds, faults = example.measure("tiny", way, steps=3)
        assert seconds > 0
        assert faults >= 0
    assert left["to None"] == [[None, None]] * 4  # one to warm up
    assert left["to zero"] == [[0, 0]] * 4
    first, *_, last = (sum(sums).item() for sums in left["not at all"])
    assert last == pytest.approx(4 * first, rel=1e-3)


def result(cleared, *seconds):
    return {"model": "m", "allocator": "a", "cleared": cleared, "seconds": seconds, "faults": [7]}


def test_ratios_are_taken_round_by_round(example):
    results = [
        result("to None", 1.0, 10.0, 100.0),
        result("to zero", 2.0, 10.0, 300.0),
        result("not at all", 1.0, 5.0, 300.0),
    ]
    found = example.ratios(results)
    assert found == {("m", "a"): {"to None": 1, "to zero": 2, "not at all": 1}}


def test_processes_take_turns_and_have_their_environment(example, monkeypatch):
    asked = []

    def note(setting):
        asked.append(setting)
        return float(len(asked)), 0.0

    monkeypatch.setattr(example, "measure_apart", note)
    results = example.measure_all(["x"], rounds=2)
    settings = [*itertools.product(["x"], example.ALLOCATORS, example.CLEARED)]
    turns = [(each.model, each.allocator, each.cleared) for each in asked]
    assert turns == [*settings, *settings[1:], settings[0]]
    assert results[0].seconds == [1.0, 18.0]
    assert results[1].seconds == [2.0, 10.0]


def test_a_file_gives_the_same_table(tmp_path):
    def run(*arguments):
        command = [sys.executable, EXAMPLES / "which_zero_grad.py", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert run("--from", PUBLISHED).strip() in PAGE.read_text()


def test_published_times_are_complete(example):
    report = json.loads(PUBLISHED.read_text())
    found = [(r["model"], r["allocator"], r["cleared"]) for r in report["results"]]
    assert found == [*itertools.product(example.TRAINED, example.ALLOCATORS, example.CLEARED)]
    assert report["rounds"] >= 3
    for timed in report["results"]:
        assert len(timed["seconds"]) == len(timed["faults"]) == report["rounds"]


def test_the_page_says_what_the_published_times_say(example):
    report, page = json.loads(PUBLISHED.read_text()), PAGE.read_text()
    assert PUBLISHED.name in page
    found = {(r["model"], r["allocator"], r["cleared"]): r for r in report["results"]}
    wide = [*example.TRAINED][-1]
    times, faults = (
        {way: median(found[wide, way, example.USUAL][key]) for way in example.ALLOCATORS}
        for key in ("seconds", "faults")
    )
    usual, huge, kept = example.ALLOCATORS
    assert 65_536 <= faults[usual] < 1.01 * 65_536
    saved = [f"{1 - times[way] / times[usual]:.0%}" for way in (huge, kept)]
    assert f"{saved[0]} of the training step with huge pages and {saved[1]} with" in page


def test_not_clearing_at_all_is_no_faster_than_none(example):
    """If this fails, zeroing in the step could win something.

    Processes of one kind differ by some percent from each other, a tenth for the smallest model.
    """
    found = example.ratios(json.loads(PUBLISHED.read_text())["results"])
    for_nothing = {where: each[example.FOR_NOTHING] for where, each in found.items()}
    assert median(for_nothing.values()) >= 1
    assert min(for_nothing.values()) > 0.9
