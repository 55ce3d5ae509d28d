"""The command line."""

from __future__ import annotations

import functools
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import fusedopt
from fusedopt import reference
from fusedopt.checking import cases, verify
from fusedopt.cli import app


@pytest.fixture
def two_cases(monkeypatch):
    """Few and small cases, so that a run takes a moment."""
    monkeypatch.setattr(verify, "CASES", [c for c in cases.CASES if c.row.name == "Adam"][:2])
    monkeypatch.setattr(verify, "DTYPES", (torch.float32, torch.bfloat16))


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
print(collect()["CUDA in fusedopt"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "not built\n"


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
