"""The README says what the committed results say, and documents name what exists."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from fusedopt.benchmarks.documents import renewed
from fusedopt.benchmarks.reporting.report import markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]


def test_benchmark_table_is_that_of_the_results_file():
    (name,) = set(re.findall(r"\]\((benchmarks/results/[\w-]+\.json)\)", README))
    assert markdown(json.loads((ROOT / name).read_text()), "overview").strip() in README


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_benchmark_tables_are_renewed(document):
    """If not: ``python -m fusedopt.benchmarks.documents --into DOCUMENT.md``."""
    assert renewed(document) == document.read_text()


def test_digits_table_is_that_of_the_results_file(monkeypatch, capsys):
    (path,) = (ROOT / "examples" / "results").glob("train_digits*.json")
    monkeypatch.syspath_prepend(ROOT / "examples")
    importlib.import_module("train_digits").main(markdown_from=path)
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "digits.md").read_text()


def test_links_within_the_repository_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_tests_that_documents_name_exist():
    for document in ROOT.glob("docs/**/*.md"):
        for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", document.read_text()):
            (path,) = ROOT.glob(f"tests/**/{file}")
            text = path.read_text()
            assert f"def {name}(" in text, f"{document.name}: {file}::{name}"
