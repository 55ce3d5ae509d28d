"""The layers keep to what they may know (docs/design.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fusedopt.cases import ROWS

ROOT = Path(__file__).parent.parent
RULES = sorted((ROOT / "csrc" / "rules").glob("*.h"))
NAMES = re.compile(r"\b(adam|adamw|sgd|adagrad|rmsprop|adadelta|nesterov)\b", re.IGNORECASE)


def code_of(path: Path) -> str:
    """A C++ file without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("layer", ["core", "cpu", "cuda", "bindings"])
def test_engines_do_not_know_an_optimizer(layer):
    for path in (ROOT / "csrc" / layer).iterdir():
        assert not NAMES.search(code_of(path)), path


@pytest.mark.parametrize("layer", ["rules", "core", "cpu", "cuda"])
def test_only_the_bindings_know_python(layer):
    for path in (ROOT / "csrc" / layer).iterdir():
        assert not re.search(r"Python\.h|pybind11|PyObject|dlpack", code_of(path)), path


def test_rules_use_the_basic_operations_only():
    for path in RULES:
        code = code_of(path)
        assert not re.search(r"\b(std::)?(powf?|exp\w*|log\w*|fma\w*|rsqrt\w*)\s*\(", code), path
        assert not re.search(r"#include <(cmath|thread|immintrin|omp)", code), path
        if path.name not in ("math.h", "registry.h"):
            assert not re.search(
                r"\bsqrtf?\s*\(|\bT\s*\*|\bvoid\s*\*|\b(float|double)\s*\*", code
            ), path


def test_layers_include_only_those_below():
    below = {
        "rules": {"rules"},
        "core": {"core", "rules"},
        "cpu": {"cpu", "core", "rules"},
        "cuda": {"cuda", "core", "rules"},
        "bindings": {"bindings", "cpu", "cuda", "core", "rules"},
    }
    for layer, allowed in below.items():
        for path in (ROOT / "csrc" / layer).iterdir():
            for included in re.findall(r'#include "(\w+)/', path.read_text()):
                assert included in allowed, f"{path} includes {included}"


def test_instruction_sets_are_named_in_few_places():
    allowed = {"convert.h", "isa.cpp", "ieee_environment.h"}
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.name not in allowed:
            assert not re.search(r"__AVX|__ARM_NEON|_mm\d*_|__x86_64__", code_of(path)), path


def test_cuda_is_called_in_few_places():
    """The work of a block and its table know no runtime, so that they are tested without a GPU."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.parent.name in ("cpu", "bindings") and path.name != "cuda_module.cpp":
            assert not re.search(r"\bcuda[A-Z]\w+\(|__CUDA", code_of(path)), path
    for name in ("table.h", "launch_plan.h", "launch_plan.cpp", "tuning.h", "block.h"):
        assert "cuda_runtime" not in (ROOT / "csrc" / "cuda" / name).read_text(), name


def test_python_layer_branches_on_no_optimizer_name_and_no_device():
    for path in (ROOT / "fusedopt").glob("*.py"):
        if path.name == "cases.py":
            continue
        text = path.read_text()
        assert not re.search(r"\bif\b.*(_rule|__name__)\s*==\s*\"(?!__main__)", text), path
        assert not re.search(r"\bif\b.*\b(is_cuda|device\.type)\b", text), path


def test_every_optimizer_has_its_places():
    exported = {row.name for row in ROWS}
    import fusedopt

    assert exported == set(fusedopt.__all__) - {"FusedOptimizer", "from_torch"}
    for row in ROWS:
        assert "Source:" in row.optimizer.__doc__
        assert f"reference.{row.reference.__name__}" in row.optimizer.__doc__
