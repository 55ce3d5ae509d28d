"""The layers keep to what they may know (docs/design.md)."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import fusedopt
from fusedopt.checking.rows import ROWS

ROOT = Path(__file__).parent.parent
RULES = sorted((ROOT / "csrc" / "rules").glob("*.h"))

# Where an optimizer may be named: in the files of rules, which say what they have in common, and in
# lists that no program could make: the rows, the rules that are compiled, other packages' classes.
OWN_FILES = ("csrc/rules/{}.h", "fusedopt/reference/{}.py", "fusedopt/optimizers/{}.py")
LISTS = {"csrc/rules/registry.h", "benchmarks/contestants/others.py", "fusedopt/checking/rows.py"}
LISTING_DOCUMENTS = (
    "README.md", "CHANGELOG.md", "benchmarks/README.md", "docs/digits.md", "docs/pictures.md",
    "docs/teaching.md",
)  # fmt: skip
# Where one is chosen: for most of the benchmark, for what it trains, and for an example.
CHOICES = {
    "Adam": {"benchmarks/contestants/contests.py"},
    "AdamW": {"benchmarks/contestants/contests.py", "fusedopt/convert.py"},
}


def sources() -> dict[str, str]:
    """The text of every source file of the package, the engines and the benchmark, by its path."""
    suffixes = {".h", ".cpp", ".cu", ".py", ".pyi"}
    paths = [p for name in ("csrc", "fusedopt", "benchmarks") for p in (ROOT / name).rglob("*")]
    return {str(p.relative_to(ROOT)): p.read_text() for p in paths if p.suffix in suffixes}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_optimizer_is_named_in_its_row_and_its_own_files(row):
    own = {file.format(each.rule) for each in ROWS for file in OWN_FILES}
    found = {path for path, text in sources().items() if re.search(rf"\b{row.name}\b", text)}
    assert found <= own | LISTS | CHOICES.get(row.name, set())
    assert own <= {*sources()}


def test_nothing_else_lists_the_optimizers():
    """Tests and documents name one where it is the subject, and never most of them."""
    lists = {ROOT / name for name in LISTING_DOCUMENTS}
    documents = {*ROOT.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")}
    code = {*ROOT.glob("tests/**/*.py"), *ROOT.glob("examples/*.py")}
    for path in (documents | code) - lists:
        named = [row.name for row in ROWS if re.search(rf"\b{row.name}\b", path.read_text())]
        assert len(named) <= 3 / 4 * len(ROWS), f"{path} lists {', '.join(named)}"


def code_of(path: Path) -> str:
    """A C++ file without its comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("layer", ["core", "cpu", "cuda", "bindings"])
def test_engines_do_not_know_an_optimizer(layer):
    """Not by its rule's name either, where that is not an option's name, too."""
    options = {name for row in ROWS for name in inspect.signature(row.reference).parameters}
    rules = "|".join(row.rule for row in ROWS if row.rule not in options)
    for path in (ROOT / "csrc" / layer).iterdir():
        assert not re.search(rf"\b({rules})\b", code_of(path), re.IGNORECASE), path


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


PYTHON_LAYERS = {
    "fusedopt": {
        "reference": {"reference"},
        "peers": {"peers"},
        "optimizers": {"optimizers", "peers", "_native", "forks", "hooks", "modes"},
        "checking": {"checking", "optimizers", "reference", "_native"},
        "plotting": {"plotting", "checking", "optimizers", "names"},
    },
    "benchmarks": {
        "workloads": {"workloads"},
        "contestants": {"contestants"},
        "measuring": {"measuring", "contestants", "workloads"},
        "reporting": {"reporting", "contestants"},
    },
}


def imported_by(path: Path) -> set[str]:
    """The rooms, or modules beside them, of the same package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            found.add(path.parent.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 2:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom) and path.is_relative_to(ROOT / "fusedopt"):
            package, *rest = node.module.split(".")
            names = rest[:1] or [alias.name for alias in node.names]
            found |= {*names} if package == "fusedopt" else set()
    return found


@pytest.mark.parametrize("package", PYTHON_LAYERS)
def test_rooms_import_only_those_below(package):
    for room, allowed in PYTHON_LAYERS[package].items():
        paths = [*(ROOT / package / room).rglob("*.py")]
        assert paths
        for path in paths:
            assert imported_by(path) <= allowed, path


@pytest.mark.parametrize("folder", ["fusedopt", "benchmarks", "tests", "examples", "docs"])
def test_files_are_short(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_instruction_sets_are_named_in_few_places():
    allowed = {"convert.h", "lanes.h", "isa.cpp", "ieee_environment.h"}
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
    for path in (ROOT / "fusedopt").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"\bif\b.*(_rule|__name__)\s*==\s*\"(?!__main__)", text), path
        assert not re.search(r"\bif\b.*\b(is_cuda|device\.type)\b", text), path


def test_every_optimizer_has_its_places():
    exported = {row.name for row in ROWS}
    classes = {name for name in fusedopt.__all__ if isinstance(getattr(fusedopt, name), type)}
    assert exported == classes - {"FusedOptimizer"}
    for row in ROWS:
        assert "Source:" in row.optimizer.__doc__
        assert f"reference.{row.reference.__name__}" in row.optimizer.__doc__
