"""The checks that need a GPU, run on a stand-in for CUDA's runtime: ``torch_gpu``.

Here one case of each. All of them take a quarter of an hour; tests/gpu/README.md has the command.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip(
    "fusedopt._cuda_stand_in",
    reason="the stand-in for CUDA's runtime is built where CUDA's headers are found",
)

ROOT = Path(__file__).parents[2]
PYTEST = [
    *("-m", "pytest", "-q", "-p", "torch_gpu.plugin", "-p", "no:cacheprovider"),
    *("-o", "python_files=check_*.py"),
]


def run(*arguments):
    """Runs Python with the stand-in within its reach."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "cuda"), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_one_case_of_each_check():
    """Those that cannot pass are listed in the plugin, and fail."""
    result = run(*PYTEST, "--one-of-each", "tests/gpu")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "skipped" not in result.stdout


def test_rates_on_a_gpu_where_the_host_counts():
    """Its kernel would derive the scalars from a step count that it does not have."""
    result = run(*PYTEST, "tests/gpu/check_bits.py", "-k", "learning_rate and Adagrad")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_the_program_for_the_sanitizer():
    result = run("-m", "torch_gpu", "tests/gpu/sanitize.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "0 elements differ from the CPU's\n"
