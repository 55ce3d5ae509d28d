"""What the benchmark measures beside single steps, and the pictures of it."""

from __future__ import annotations

import ctypes
import json
from dataclasses import replace
from pathlib import Path

import matplotlib.figure
import pytest
import torch
from typer.testing import CliRunner

from benchmark_helpers import CONDITIONS, MINIATURE, TINY, bars, no_advance
from fusedopt.benchmarks import documents
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants.contests import CONTESTS, OURS, TOUCH
from fusedopt.benchmarks.measuring import costs, scaling, training
from fusedopt.benchmarks.measuring.measure import (
    bytes_available,
    bytes_needed,
    make_groups,
    measure_case,
)
from fusedopt.benchmarks.reporting import plots, report, tables, targets
from fusedopt.benchmarks.workloads.tensors import ELEMENTS, TENSORS, WORKLOADS, equal_tensors
from fusedopt.cli import app
from fusedopt.plotting.style import LIGHT

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
WHOLE = next(path for path in RESULTS if json.loads(path.read_text())["cases"])


def test_families_have_the_sizes_that_they_promise():
    assert {workload.tensors for workload in TENSORS} >= {1, 10, 100, 1000, 10_000}
    assert {workload.elements // workload.tensors for workload in TENSORS} == {64, 3500}
    assert ELEMENTS[0].elements == 2**6
    assert ELEMENTS[-1].elements == 2**28
    assert all(workload.tensors == 1 for workload in ELEMENTS)


@pytest.fixture
def small_families(monkeypatch):
    sizes = [equal_tensors(tensors, elements) for elements in (4, 7) for tensors in (1, 3)]
    monkeypatch.setattr(scaling, "TENSORS", sizes)
    monkeypatch.setattr(scaling, "ELEMENTS", [equal_tensors(1, 8), equal_tensors(1, 16)])
    monkeypatch.setattr(scaling, "WORKLOADS", {"tiny": TINY})
    monkeypatch.setattr(scaling, "THREAD_WORKLOADS", ("tiny",))


@pytest.mark.usefixtures("small_families")
def test_families_have_a_row_a_size():
    with bars() as progress:
        tensors = scaling.tensors(CONDITIONS, progress)
        elements = scaling.elements(CONDITIONS, progress)
    assert [(row["tensors"], row["elements"]) for row in tensors] == [
        (1, 4), (3, 12), (1, 7), (3, 21),
    ]  # fmt: skip
    assert [row["elements"] for row in elements] == [8, 16]
    assert set(elements[0]["peers"]) == {OURS, TOUCH, "for-loop", "fused"}


@pytest.mark.usefixtures("small_families")
def test_threads_go_from_one_to_all():
    assert scaling._thread_counts(1) == [1]
    assert scaling._thread_counts(6) == [1, 2, 4, 6]
    before = torch.get_num_threads()
    with scaling.torch_threads(2), bars() as progress:
        rows = scaling.threads(CONDITIONS, progress)
    assert [row["threads"] for row in rows] == [1, 2]
    assert torch.get_num_threads() == before


def test_what_does_not_fit_into_memory_is_skipped_with_a_line(monkeypatch):
    monkeypatch.setattr(bench, "bytes_available", lambda device: 10_000)
    cases = [(TINY, ["Adam"]), (WORKLOADS["one-64m"], ["Adam"])]
    with bars() as progress:
        rows, skipped = bench.measure_cases(cases, CONDITIONS, progress)
    assert [row["workload"] for row in rows] == ["tiny"]
    assert len(skipped) == 1
    assert skipped[0].startswith("one-64m, Adam: needs about 2 GiB, 0 are free")


def test_memory_is_estimated_from_states_and_peers():
    contest = CONTESTS["Adam"]
    assert bytes_needed(TINY, "Adam", CONDITIONS) == 65 * 4 * (2 + 2 * contest.states + 2)
    assert bytes_available("cpu") > 0


def test_training_steps_train_and_are_compared():
    make = lambda: torch.nn.Sequential(torch.nn.Linear(3, 2))  # noqa: E731
    batch = lambda: (torch.randn(4, 3), torch.randint(2, (4,)))  # noqa: E731
    with bars() as progress:
        row = training.measure_training(make, batch, CONDITIONS, progress)
    assert set(row["peers"]) == {OURS, "torch", "foreach", "fused"}
    assert set(row["share_of"]) == {"torch", "foreach", "fused"}
    assert (row["tensors"], row["elements"]) == (2, 8)
    torch.manual_seed(0)
    model, (inputs, targets) = make(), batch()
    before = [param.clone() for param in model.parameters()]
    training.training_step(model, training.OPTIMIZERS[OURS], inputs, targets)()
    assert all((a != b).any() for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", training.MODELS)
def test_optimizers_train_every_model_alike(name):
    make, batch = training.MODELS[name]
    torch.manual_seed(0)
    inputs, targets = batch()
    trained = []
    for optimizer in (training.OPTIMIZERS[OURS], training.OPTIMIZERS["torch"]):
        torch.manual_seed(0)
        model = make()
        step = training.training_step(model, optimizer, inputs, targets)
        step()
        trained.append(torch.cat([param.detach().flatten() for param in model.parameters()]))
    torch.testing.assert_close(*trained, rtol=0, atol=1e-6)


def test_import_is_timed_in_fresh_interpreters(monkeypatch):
    answers = iter(["[9.0, 9.0]", "[1.0, 0.1]", "[2.0, 0.3]", "[3.0, 0.2]"])
    monkeypatch.setattr(costs, "run_python", lambda *arguments: next(answers))
    with bars() as progress:
        rows = costs.import_times(3, progress)
    assert [(row["who"], row["value"]) for row in rows] == [("torch", 2.0), (OURS, 0.2)]


def test_construction_and_first_step_have_a_row_each(monkeypatch):
    monkeypatch.setattr(costs, "MANY", TINY)
    with bars() as progress:
        rows = costs.first_steps(CONDITIONS, progress, rounds=2)
    assert len(rows) == 2 * 4
    assert all(row["value"] > 0 and row["unit"] == "seconds" for row in rows)


def test_added_memory_is_that_of_the_states():
    workload = equal_tensors(1, 4 << 20)
    groups = make_groups(workload, torch.float32)
    factory = CONTESTS["Adam"].peers()[OURS]
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have freed could be used again
    added = costs.added_memory(factory, groups)
    assert 8 * workload.elements <= 1.02 * added <= 1.3 * 8 * workload.elements


def test_peak_memory_is_measured_in_a_process_of_its_own(monkeypatch):
    asked = []
    monkeypatch.setattr(costs, "run_python", lambda *arguments: asked.append(arguments) or "1000")
    with bars() as progress:
        rows = costs.peak_memory(CONDITIONS, progress)
    assert [who for *_, who, _ in asked] == [row["who"] for row in rows]
    assert {dtype for *_, dtype in asked} == {"float32"}
    assert {row["unit"] for row in rows} == {"bytes/parameter"}


def test_a_fresh_interpreter_answers_with_its_last_line():
    assert costs.run_python("-c", "print('noise'); print([1, 2])") == "[1, 2]"


@pytest.fixture
def result(small_families, monkeypatch):
    """A miniature result with all parts but costs, which are made up."""
    with bars() as progress:
        one = training.measure_training(
            lambda: torch.nn.Linear(3, 2),
            lambda: (torch.randn(4, 3), torch.randint(2, (4,))),
            CONDITIONS, progress,
        )  # fmt: skip
        monkeypatch.setattr(bench, "WORKLOADS", {"tiny": TINY})
        monkeypatch.setattr(
            bench, "PARTS",
            {
                "tensors": scaling.tensors,
                "elements": scaling.elements,
                "threads": scaling.threads,
                "training": lambda *_: [{"model": "linear", **one}],
                "costs": lambda *_: [costs._row("import", OURS, 0.01)],
            },
        )  # fmt: skip
    return bench.run(settings=MINIATURE)


def test_every_part_has_a_table(result, tmp_path, capsys):
    names = {"steps", "cold", "details", "targets", *bench.PARTS}
    assert set(tables.all_tables(result)) == names
    for shown in tables.all_tables(result).values():
        assert all(len(row) == len(shown.columns) for row in shown.rows)
    path = tmp_path / "result.json"
    report.save(result, path)
    capsys.readouterr()
    documents.main([str(path)])
    assert capsys.readouterr().out.count(tables.conditions(result) + ":\n\n| ") == len(names)


def test_pictures_are_drawn_in_both_themes(result, tmp_path):
    large = measure_case(TINY, "Adam", make_groups(TINY, torch.float32), CONDITIONS, no_advance)
    large["ideal_bytes"] = plots.IN_NO_CACHE
    paths = plots.draw_all({**result, "cases": [*result["cases"], large]}, tmp_path)
    drawn = set(plots._PICTURES) - set(bench.OF_OWN_DTYPES)
    names = {f"benchmark-{name}-{theme}.svg" for name in drawn for theme in ("light", "dark")}
    assert {path.name for path in paths} == names == {path.name for path in tmp_path.iterdir()}
    assert all("<svg" in path.read_text() for path in paths)


@pytest.mark.parametrize(("times", "said"), [([1.0, 0.5, 0.2], 1), ([1.0, 0.95, 2.0], 0)])
def test_a_picture_says_why_times_are_below_the_memorys_limit(times, said):
    panel = matplotlib.figure.Figure().subplots()
    limits = dict.fromkeys(range(3), 1.0)
    plots._say_what_is_cached(panel, dict(enumerate(times)), limits, LIGHT)
    assert [text.get_text() for text in panel.texts] == ["in the caches"] * said


def test_a_run_draws_what_it_has_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "WORKLOADS", {"tiny": TINY})
    bench.run(only=["tiny"], settings=MINIATURE, plot=tmp_path / "pictures")
    path = tmp_path / "pictures" / "benchmark-workloads-dark.svg"
    assert path.exists()
    assert str(path) in capsys.readouterr().out


def test_the_memorys_rate_is_that_of_the_largest(result):
    assert plots.memory_rate(result) is None  # all of it is in the caches
    case = {"optimizer": "Adam", "ideal_bytes": 2e9, "peers": {TOUCH: {"median": 0.1}}}
    assert plots.memory_rate({"cases": [case]}) == 2e10


def test_aims_are_held_against_the_lowest():
    def case(workload, median, lower=None, upper=None):
        speedup = summary(median, lower or median, upper or median)
        return {
            "workload": workload, "optimizer": "Adam", "tensors": 2, "ideal_bytes": 2e9,
            "speedup": speedup, "share_of_touch": summary(0.5, 0.4, 0.6),
        }  # fmt: skip

    def summary(median, lower, upper):
        return {"median": median, "lower_quartile": lower, "upper_quartile": upper}

    cases = [
        case("mlp", 5.0), case("a-bfloat16", 1.41, 1.39, 1.5), case("b-bfloat16", 2.0),
        case("a-float16", 1.38, 1.35, 1.41), case("b-float16", 1.5),
    ]  # fmt: skip
    cases.append({**case("mlp", 0.5), "speedup": None})
    part = [
        costs._row("import, beside torch", OURS, 0.01),
        costs._row("construction, 10,000 tensors", OURS, 0.2),
        costs._row("construction, 10,000 tensors", "fused", 0.1),
    ]
    rows = targets.targets(cases, {"parts": {"costs": part}}).rows
    assert [(row[0].partition(",")[0], row[-1]) for row in rows] == [
        ("ratio", "yes"), ("ratio in bfloat16", "tie"), ("ratio in float16", "tie"),
        ("share of touch's speed", "no"), ("import", "yes"), ("construction", "no"),
    ]  # fmt: skip


def test_the_aims_are_shown_where_they_are_asked_for(result, capsys):
    report.show(result)
    assert "reached" not in capsys.readouterr().out
    report.show(result, aims=True)
    assert "reached" in capsys.readouterr().out


def test_cases_in_which_torch_is_faster_come_first(result):
    (case, *_) = result["cases"]
    slower = {**case, "speedup": {**case["speedup"], "median": 0.5}, "tie": False}
    lead = report.markdown({**result, "cases": [slower, case]}).splitlines()[0]
    assert lead.endswith("torch's fastest is faster in 1 of 2 cases: tiny, Adam (0.50).")


def test_a_picture_without_rows_is_not_drawn(tmp_path):
    path = WHOLE
    drawn = plots.draw_all({**json.loads(path.read_text()), "parts": {}}, tmp_path)
    assert {path.name for path in drawn} == {
        "benchmark-workloads-light.svg", "benchmark-workloads-dark.svg",
    }  # fmt: skip


def test_tables_of_a_document_are_renewed(tmp_path):
    document = tmp_path / "document.md"
    (tmp_path / "result.json").write_text(WHOLE.read_text())
    block = "before\n<!-- benchmark steps result.json -->\n{}<!-- end of benchmark -->\nafter\n"
    document.write_text(block.format("old\n"))
    documents.main(["--into", str(document)])
    expected = report.markdown(json.loads(WHOLE.read_text()))
    assert document.read_text() == block.format(f"\n{expected}\n")
    assert documents.renewed(document) == document.read_text()


def test_parts_are_named_on_the_command_line(monkeypatch):
    monkeypatch.setattr(bench, "PARTS", {"costs": lambda *_: [costs._row("import", OURS, 0.01)]})
    outcome = CliRunner().invoke(app, ["bench", "--only", "costs"])
    assert outcome.exit_code == 0, outcome.output
    assert "10.0 ms" in outcome.output


def test_families_take_fewer_rounds(monkeypatch):
    monkeypatch.setattr(scaling, "measure_case", lambda *args, copies: args[3])
    monkeypatch.setattr(scaling, "TENSORS", [TINY])
    (seen,) = scaling.tensors(replace(CONDITIONS, device="cpu"), _Silent())
    assert seen.settings.warmup == 1
    assert seen.peers == ("for-loop", "fused")


class _Silent:
    """Progress bars that show nothing."""

    def start(self, description):
        pass

    advance = staticmethod(no_advance)
