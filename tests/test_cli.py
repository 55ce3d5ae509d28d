"""The command line."""

from __future__ import annotations

import functools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import forked
import fusedopt
from fusedopt import info, reference
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants.contests import CONTESTS
from fusedopt.benchmarks.run import PARTS
from fusedopt.benchmarks.workloads.tensors import WORKLOADS
from fusedopt.checking import cases, report
from fusedopt.cli import app
from fusedopt.names import UnknownNameError, find_name
from fusedopt.plotting.trajectories.surfaces import SURFACES


@pytest.fixture
def two_cases(monkeypatch):
    """Few and small cases, so that a run takes a moment."""
    monkeypatch.setattr(report, "CASES", [c for c in cases.CASES if c.row.name == "Adam"][:2])
    monkeypatch.setattr(report, "DTYPES", (torch.float32, torch.bfloat16))


@pytest.mark.usefixtures("two_cases")
def test_verify_prints_a_table_and_succeeds():
    result = CliRunner().invoke(app, ["verify"], terminal_width=100)
    assert result.exit_code == 0, result.output
    for word in ("Adam", "float32", "bfloat16", *fusedopt._native.available_isas(), "0 mismatches"):
        assert word in " ".join(result.output.split())


@pytest.mark.usefixtures("two_cases")
def test_verify_fails_on_a_single_wrong_bit(monkeypatch):
    right = reference.adam

    @functools.wraps(right)
    def wrong(param, grad, state, **options):
        param, state = right(param, grad, state, **options)
        if param.size > 1000 and param.dtype.name == "float32":
            param[777] = -param[777]
        return param, state

    monkeypatch.setattr(reference, "adam", wrong)
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "first mismatch of Adam, float32" in result.output


def test_info_has_what_a_bug_report_needs():
    output = subprocess.run(
        [sys.executable, "-m", "fusedopt", "info"], capture_output=True, text=True, check=True
    ).stdout
    for word in (
        fusedopt.__version__, torch.__version__, "instruction set", "available", "threads", "CUDA",
        "compiler", fusedopt._native.compiler, fusedopt._native.selected_isa(),
    ):  # fmt: skip
        assert word in output


def test_info_without_the_cuda_engine():
    """As where it was not built: not to be found, which ``sys.modules`` cannot imitate."""
    code = """
import sys

class NotBuilt:
    def find_spec(name, path=None, target=None):
        if name == "fusedopt._cuda":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotBuilt)
from fusedopt.info import collect
assert collect()["CUDA in fusedopt"] == "not built"
"""
    forked.run_python(code)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("CUDA: ... (cudaErrorNoDevice) asking for devices", "no GPU here"),
        ("CUDA: ... (cudaErrorInsufficientDriver) asking for devices", "no NVIDIA driver here"),
        ("CUDA: another (cudaErrorUnknown)", "CUDA: another (cudaErrorUnknown)"),
    ],
)
def test_info_says_calmly_that_there_is_no_gpu(error, said):
    def raise_it():
        raise RuntimeError(error)

    engine = SimpleNamespace(device_count=raise_it, toolkit="13.0")
    assert info._gpus(engine) == said
    engine.device_count = lambda: 2
    assert info._gpus(engine) == "2 GPUs here"


def test_info_keeps_brackets(monkeypatch, capsys):
    monkeypatch.setattr(info, "collect", lambda: {"huge pages": "always [madvise] never"})
    info.print_info()
    assert "always [madvise] never" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("bench", (*WORKLOADS, *CONTESTS, *PARTS, "bitsandbytes")),
        ("trajectories", (*SURFACES, *CONTESTS)),
    ],
)
def test_help_lists_the_names_that_there_are(command, names):
    output = CliRunner().invoke(app, [command, "--help"], terminal_width=100).output
    shown = {word.strip(",.") for word in output.split()}
    assert not {word for name in names for word in name.split()} - shown


def test_names_are_found_in_any_case():
    assert find_name("ADAMW", CONTESTS) == "AdamW"
    assert bench.plan(False, ["ResNet-50"], ["rmsPROP"]) == bench.Plan(
        [(WORKLOADS["resnet-50"], ["RMSprop"])], []
    )
    with pytest.raises(UnknownNameError, match=r"'adamx' is not one of SGD, Momentum, .*AdamW$"):
        find_name("adamx", CONTESTS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "--json", "/dev/null/result.json"],
        ["bench", "--plot", "/dev/null/pictures"],
        ["bench", "--threads", "0"],
        ["bench", "--threads", "1000000"],
        ["trajectories", "--out", "/dev/null/pictures"],
        ["trajectories", "--out", __file__],
        ["trajectories", "--only", "moon"],
        ["compare", "none.json", "none.json"],
        ["nonsense"],
    ],
)
def test_a_wrong_argument_is_refused_before_anything_is_measured(arguments, monkeypatch):
    monkeypatch.setattr(bench, "run", None)
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 2
    assert not isinstance(outcome.exception, Exception)
    assert "Error" in outcome.output


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"fusedopt {fusedopt.__version__}\n")


def test_missing_extra_is_explained():
    code = """
import sys
sys.modules["typer"] = None
from fusedopt.__main__ import main
main()
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "pip install 'fusedopt[cli]'" in result.stderr
