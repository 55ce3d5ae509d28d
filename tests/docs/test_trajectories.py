"""Paths over loss surfaces: the surfaces, the runs, the search and the command."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fusedopt.checking.rows import ROWS
from fusedopt.cli import app
from fusedopt.plotting.style import LIGHT
from fusedopt.plotting.trajectories import search as searching
from fusedopt.plotting.trajectories.drawing import (
    POINT_MARKS,
    draw_all,
    draw_one,
    mark_every,
    style_of,
)
from fusedopt.plotting.trajectories.search import CRITERION, FLOOR, OPTIMIZERS, TIE, search, walk
from fusedopt.plotting.trajectories.surfaces import SURFACES

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"


def gradient(surface, point):
    """By autograd, of one point: float64 of shape (2,)."""
    x, y = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in point)
    return np.array([g.item() for g in torch.autograd.grad(surface.loss(x, y), (x, y))])


def curvatures(surface, point):
    """The eigenvalues of the second derivative, ascending."""
    hessian = torch.autograd.functional.hessian(
        lambda p: surface.loss(p[0], p[1]), torch.tensor(point, dtype=torch.float64)
    )
    return torch.linalg.eigvalsh(hessian).tolist()


@pytest.mark.parametrize("name", SURFACES)
def test_minima_are_minima_and_saddles_saddles(name):
    surface = SURFACES[name]
    for x, y in surface.minima:
        assert surface.loss(np.float64(x), np.float64(y)) == surface.lowest
        assert not gradient(surface, (x, y)).any()
        assert curvatures(surface, (x, y))[0] > 0
    for point in surface.saddles:
        assert not gradient(surface, point).any()
        low, high = curvatures(surface, point)
        assert low < 0 < high


@pytest.mark.parametrize("name", SURFACES)
def test_the_lowest_loss_of_a_picture_is_that_of_the_minima(name):
    surface = SURFACES[name]
    x, y = np.meshgrid(*(np.linspace(*limit, 301) for limit in surface.limits))
    assert surface.loss(x, y).min() >= surface.lowest
    low, high = np.transpose(surface.limits)
    assert np.all((low < surface.start) & (surface.start < high))


@pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_paths_are_those_of_the_reference(row, surface):
    rates, steps = (0.0005, 0.002), 12
    paths = walk(row.optimizer, surface, rates, steps)
    assert paths.shape == (2, steps + 1, 2)
    for rate, path in zip(rates, paths, strict=True):
        group = row.optimizer([torch.zeros(2)], lr=rate).param_groups[0]
        options = row.reference_options(group)
        param, state = np.array(surface.start), {}
        for step in range(steps + 1):
            iterate = param
            if row.name == "Nesterov" and step > 0:  # the parameter is the lookahead point
                iterate = param - options["momentum"] * state["velocity"]
            np.testing.assert_array_equal(path[step].view(np.int64), iterate.view(np.int64))
            param, state = row.reference(param, gradient(surface, param), state, **options)


def test_nesterov_walks_as_textbooks_say():
    surface, rate = SURFACES["rosenbrock"], 0.001
    [path] = walk(OPTIMIZERS["Nesterov"], surface, [rate], steps=10)
    x, velocity = np.array(surface.start), np.zeros(2)
    for point in path:
        np.testing.assert_allclose(point, x, rtol=1e-12)
        velocity = 0.9 * velocity - rate * gradient(surface, x + 0.9 * velocity)
        x = x + velocity


def score(surface, path):
    """The criterion, step by step."""
    losses = [surface.loss(*point) - surface.lowest for point in path]
    worst = [max(losses[step:]) for step in range(len(losses))]
    return sum(math.log10(loss + FLOOR) for loss in worst) / len(worst)


@pytest.mark.parametrize("optimizer", ["SGD", "Momentum", "Adam"])
def test_search_finds_the_best_rate(optimizer):
    surface, rates = SURFACES["valley"], (0.001, 0.005, 0.01, 0.04, 0.1, 0.5)
    scores = {}
    for rate in rates:
        [path] = walk(OPTIMIZERS[optimizer], surface, [rate], steps=30)
        low, high = np.transpose(surface.limits)
        strides = [math.dist(a, b) for a, b in pairwise(path)]
        if np.all((low <= path) & (path <= high)) and max(strides) <= math.dist(low, high) / 4:
            scores[rate] = score(surface, path)
    assert len(scores) >= 3
    best = min(scores.values())
    found = search(optimizer, surface, 30, rates)
    assert found.rate == min(rate for rate in scores if scores[rate] <= best + TIE)
    assert found.score == pytest.approx(scores[found.rate])
    assert found.losses[-1] == pytest.approx(surface.loss(*found.points[-1]))


def test_search_takes_the_smallest_of_equal_rates(monkeypatch):
    monkeypatch.setattr(searching, "TIE", 1e9)
    assert search("SGD", SURFACES["valley"], 30, (0.001, 0.04)).rate == 0.001


@pytest.mark.parametrize(
    ("rate", "limits"),
    [(0.03, ((-4.5, 1.5), (-0.1, 1.5))), (0.04, ((-4.1, 0.1), (-0.7, 1.1)))],
    ids=["leaves", "leaps"],
)
def test_search_refuses_what_leaves_the_picture_or_leaps(rate, limits):
    """Even if nothing else is left than a rate that does nearly nothing."""
    surface, rates = SURFACES["valley"], (1e-9, rate)
    assert search("SGD", surface, 30, rates).rate == rate
    assert search("SGD", replace(surface, limits=limits), 30, rates).rate == 1e-9


def test_adamw_has_adams_rate(monkeypatch):
    surface, steps = SURFACES["valley"], 60
    adams = search("Adam", surface, steps).rate
    assert search("AdamW", surface, steps).rate == adams
    monkeypatch.setattr(searching, "RATE_FROM", {})
    assert search("AdamW", surface, steps).rate != adams


def test_points_have_marks_that_no_optimizer_has():
    lines = {style_of(name, LIGHT).marker for name in OPTIMIZERS}
    for look in POINT_MARKS.values():
        assert look["marker"] not in lines or look.get("mfc") == "none"


def test_the_page_says_how_often_a_path_is_marked():
    steps = json.loads((PICTURES / "trajectories.json").read_text())["steps"]
    path = search("SGD", SURFACES["valley"], steps, [0.01])
    page = (PICTURES.parent / "pictures.md").read_text()
    assert f"{steps} steps each" in page
    assert f"a marker every {mark_every(path)} steps" in page


def test_both_axes_of_a_surface_have_a_name():
    runs = {"SGD": search("SGD", SURFACES["saddle"], 3, [0.01])}
    for figure in (draw_all({"saddle": runs}, LIGHT), draw_one({"saddle": runs}, "SGD", LIGHT)):
        for axes in figure.axes:
            assert axes.get_xlabel()
            assert axes.get_ylabel()


def invoke(*arguments):
    return CliRunner().invoke(app, ["trajectories", *map(str, arguments)])


def test_command_writes_the_same_files_again(tmp_path, monkeypatch):
    monkeypatch.setattr("fusedopt.plotting.trajectories.drawing.FRAMES", 3)
    names = {f"trajectories{end}" for end in (".png", ".gif", "-dark.png", "-dark.gif", ".json")}
    names |= {
        f"path-{name}-{theme}.svg" for name in ("sgd", "adamw") for theme in ("light", "dark")
    }
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        result = invoke(
            "--out", folder, "--steps", 3, "--each", "--only", "saddle", "--optimizer", "AdamW",
            "--optimizer", "SGD",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
        for name in names:
            assert name in result.output.replace("\n", "")
    assert written[0].keys() == names
    assert written[0] == written[1]

    report = json.loads(written[0]["trajectories.json"])
    assert report["steps"] == 3
    assert list(report["surfaces"]) == ["saddle"]
    assert list(report["surfaces"]["saddle"]) == ["SGD", "AdamW"]
    found = search("SGD", SURFACES["saddle"], 3)
    assert report["surfaces"]["saddle"]["SGD"]["lr"] == found.rate


@pytest.mark.parametrize(("option", "name"), [("--only", "valey"), ("--optimizer", "Adan")])
def test_unknown_names_are_refused(tmp_path, option, name):
    result = invoke("--out", tmp_path / "none", option, name)
    assert result.exit_code == 2
    assert f"'{name}' is not one of" in result.output
    assert not (tmp_path / "none").exists()


def test_missing_extra_is_named(tmp_path):
    code = f"""
import sys
sys.modules["matplotlib"] = None
sys.argv = ["fusedopt", "trajectories", "--out", {str(tmp_path)!r}]
from fusedopt.__main__ import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "pip install 'fusedopt[plots]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_pictures_of_the_documentation_are_of_this_search():
    report = json.loads((PICTURES / "trajectories.json").read_text())
    assert report["criterion"] == CRITERION
    assert report["rates"] == list(searching.RATES)
    assert report["surfaces"].keys() == SURFACES.keys()
    for runs in report["surfaces"].values():
        assert runs.keys() == OPTIMIZERS.keys()
    for surface, optimizer in (("saddle", "SGD"), ("valley", "Nesterov")):
        found = search(optimizer, SURFACES[surface], report["steps"])
        published = report["surfaces"][surface][optimizer]
        assert published["lr"] == found.rate
        assert published["score"] == pytest.approx(found.score, rel=1e-3)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_optimizer_has_its_picture(optimizer, theme):
    picture = PICTURES / f"path-{optimizer.lower()}-{theme}.svg"
    assert picture.stat().st_size < 150_000
