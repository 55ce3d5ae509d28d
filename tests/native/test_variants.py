"""Which kernel a rule asks for: one that there is, or an error ahead of the step."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_variant_without_kernels_is_an_error_that_names_the_rule(tmp_path):
    program = tmp_path / "wrong_variant"
    command = [os.environ.get("CXX", "g++"), "-std=c++20", "-Wall", "-Werror", f"-I{ROOT / 'csrc'}",
               str(ROOT / "tests" / "native" / "wrong_variant.cpp"),
               *map(str, (ROOT / "csrc" / "core").glob("*.cpp")), "-o", str(program)]  # fmt: skip
    subprocess.run(command, check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == [
        "2",  # above the bit that all rules share
        "rule 'wrong' has variants below 2, not 2",
        "rule 'wrong' has variants below 2, not 7",
    ]
