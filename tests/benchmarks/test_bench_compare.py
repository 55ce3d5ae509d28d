"""``fusedopt compare``: what has become slower, and what cannot be compared."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fusedopt.benchmarks.contestants.contests import OURS
from fusedopt.benchmarks.reporting.compare import compare, differences
from fusedopt.cli import app

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "amd-epyc-2-cores.json"


@pytest.fixture
def result():
    return json.loads(RESULT.read_text())


@pytest.fixture
def invoke(result, tmp_path):
    """Runs ``fusedopt compare`` on the result and a changed one."""

    def run(changed, *options):
        before, after = tmp_path / "before.json", tmp_path / "after.json"
        before.write_text(json.dumps(result))
        after.write_text(json.dumps(changed))
        command = ["compare", str(before), str(after), *options]
        return CliRunner().invoke(app, command, terminal_width=120)

    return run


def scaled(result, factor, peer="fusedopt"):
    """The result with another time for one peer of the first case."""
    changed = copy.deepcopy(result)
    timing = changed["cases"][0]["peers"][peer]
    for key in ("median", "lower_quartile", "upper_quartile"):
        timing[key] *= factor
    return changed


def test_a_result_equals_itself(result, invoke):
    assert all(change.ratio == 1 for change in compare(result, result))
    outcome = invoke(result)
    assert outcome.exit_code == 0
    ours = [change for change in compare(result, result) if change.peer == OURS]
    assert len(ours) >= len(result["cases"])
    assert f"0 of {len(ours)} cases of fusedopt slower" in outcome.output


def test_a_regression_is_the_exit_status(result, invoke):
    outcome = invoke(scaled(result, 3))
    assert outcome.exit_code == 1
    assert "slower" in outcome.output
    assert "1 of" in outcome.output


def test_what_became_faster_or_is_torchs_is_no_regression(result, invoke):
    assert "faster" in (outcome := invoke(scaled(result, 1 / 3))).output
    assert outcome.exit_code == 0
    assert invoke(scaled(result, 3, "fused")).exit_code == 0


def test_noise_is_no_regression(result, invoke):
    changed = scaled(result, 3)
    changed["cases"][0]["peers"]["fusedopt"]["lower_quartile"] = 0.0
    assert invoke(changed).exit_code == 0


def test_the_threshold_decides(result, invoke):
    assert invoke(scaled(result, 3), "--threshold", "2.5").exit_code == 0


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("machine", "processor"), "another"),
        (("settings", "dtype"), "float64"),
        (("settings", "device"), "cuda"),
        (("settings", "quick"), True),
        (("environment",), {"OMP_NUM_THREADS": "1"}),
        (("threads",), 7),
        (("isa",), "baseline"),
    ],
)
def test_other_conditions_are_refused_without_force(path, value, result, invoke):
    changed = copy.deepcopy(result)
    where = changed
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    assert len(differences(result, changed)) == 1
    outcome = invoke(changed)
    assert outcome.exit_code == 2
    assert "--force" in outcome.output
    assert invoke(changed, "--force").exit_code == 0


def test_memory_that_the_system_keeps_for_itself_does_not_count(result, invoke):
    changed = copy.deepcopy(result)
    changed["machine"]["memory_bytes"] -= 12_000
    assert invoke(changed).exit_code == 0
    changed["machine"]["memory_bytes"] //= 2
    assert invoke(changed).exit_code == 2


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"cases": 1}', "no JSON", "\udcff"])
def test_a_file_that_is_no_result_is_refused_by_name(text, tmp_path):
    path = tmp_path / "foreign.json"
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    for arguments in ([path, RESULT], [RESULT, path], [tmp_path, RESULT]):
        outcome = CliRunner().invoke(app, ["compare", *map(str, arguments)], terminal_width=500)
        assert outcome.exit_code == 2
        assert not isinstance(outcome.exception, Exception)
        refused = next(argument for argument in arguments if argument != RESULT)
        assert str(refused) in re.sub(r"[│\s]", "", outcome.output)  # broken over lines


def test_cases_that_only_one_has_are_left_out(result):
    changed = copy.deepcopy(result)
    del changed["cases"][0]
    assert len(compare(result, changed)) < len(compare(result, result))


def test_parts_are_compared_too(result):
    row = {"model": "MLP", "peers": {"fusedopt": {"median": 1.0}}}
    family = {"workload": "1x64", "optimizer": "Adam", "peers": {"fusedopt": {"median": 2.0}}}
    threads = {**family, "threads": 2}
    parts = {"training": [row], "elements": [family], "tensors": [], "threads": [threads]}
    result = {**result, "cases": [], "parts": parts}
    assert [change.case for change in compare(result, result)] == [
        "1x64, Adam, alone", "1x64, threads: 2", "training: MLP",
    ]  # fmt: skip
