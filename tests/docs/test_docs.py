"""Every code block of the documents is tried: Python runs, commands exist, C++ gives the bits."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.main import get_command

import fusedopt
from code_blocks import ROOT, Block, blocks_of, file_of, torchrun
from fusedopt import reference
from fusedopt.checking import rows
from fusedopt.cli import app

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]
)
OWN_RULE = ROOT / "docs" / "guides" / "own-rule.md"
DISTRIBUTED = ROOT / "docs" / "guides" / "distributed.md"
OFFLOADED = ROOT / "docs" / "guides" / "offloaded-training.md"
CLIPPING = ROOT / "docs" / "guides" / "clipping.md"

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def names_of_examples() -> dict[str, object]:
    """What the documents say that a reader has."""
    generator = torch.Generator().manual_seed(0)
    return {
        "fusedopt": fusedopt,
        "torch": torch,
        "model": torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)),
        "loader": [
            (torch.randn(8, 4, generator=generator), torch.randn(8, 2, generator=generator))
            for _ in range(3)
        ],
        "loss_fn": torch.nn.functional.mse_loss,
        "train": lambda model, optimizer: optimizer.step(),
        "evaluate": lambda model: 1.0,
    }


def run(block: Block, names: dict[str, object], where: str) -> None:
    """Runs Python; what needs a GPU is only compiled where there is none."""
    code = compile(block.text, where, "exec")
    if '"cuda"' not in block.text or torch.cuda.is_available():
        exec(code, names)


@each_document
def test_languages_are_those_that_are_tried(document):
    assert {block.language for block in blocks_of(document)} <= {"python", "bash", "cpp", "text"}
    titles = {block.title for block in blocks_of(document) if block.title}
    assert not titles or document in (OWN_RULE, DISTRIBUTED, OFFLOADED, CLIPPING)
    assert not blocks_of(document, "cpp") or document == OWN_RULE


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path != OWN_RULE and blocks_of(path, "python")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_python_runs(document):
    names = names_of_examples()
    for block in blocks_of(document, "python"):
        if not block.title:
            run(block, names, str(document))
    if "optimizer" in names:
        names["optimizer"].step()


def commands_of(document: Path) -> list[str]:
    """Lines of shell blocks, and commands that the text names."""
    lines = [line for block in blocks_of(document, "bash") for line in block.text.splitlines()]
    text = document.read_text()
    return [*filter(None, lines), *re.findall(r"`((?:fusedopt|make) [a-z][^`\n]*)`", text)]


@each_document
def test_commands_exist(document):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    files = [block.title for block in blocks_of(document)]
    for line in commands_of(document):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        program, *arguments = words
        if program.endswith("fusedopt"):
            command = get_command(app).commands[arguments[0]]
            command.make_context(arguments[0], arguments[1:])
        elif program == "make":
            assert arguments[0] in targets, line
        elif program == "pip":
            assert arguments[0] == "install", line
            assert set(re.findall(r"\[(\w+)\]", arguments[1])) <= set(extras), line
        elif program == "python" and arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), line
        elif program == "python":
            assert arguments[0] in files or (ROOT / arguments[0]).is_file(), line
        else:
            assert program == "torchrun", line
            assert arguments[-1] in files, line


def test_the_script_of_the_distributed_guide_runs(tmp_path):
    said = torchrun(file_of(DISTRIBUTED, "train.py"), tmp_path)
    assert said.count("the same parameters") == 2


def test_offloading_with_fsdp2_changes_no_bit(tmp_path):
    """The script, which knows a function ``train``, and the same without its policy."""
    script, end = file_of(OFFLOADED, "fsdp2.py").split("dist.destroy_process_group()")
    compare = """
for param, other in zip(model.parameters(), train()[0].parameters(), strict=True):
    assert torch.equal(param.full_tensor(), other.full_tensor())
"""
    said = torchrun(f"{script}{compare}dist.destroy_process_group(){end}", tmp_path)
    elements = 64 * 128 + 128 + 128 * 64 + 64
    assert said.count(f"{16 * elements // 2} bytes on the host") == 2


@pytest.fixture
def own_reference(monkeypatch):
    """fusedopt.reference with the function of the page on rules of one's own."""
    names = {}
    exec(file_of(OWN_RULE, "fusedopt/reference/adamax.py"), names)
    monkeypatch.setattr(reference, "adamax", names["adamax"], raising=False)
    return names["adamax"]


@pytest.mark.usefixtures("own_reference")
def test_own_rule_agrees_with_torch():
    (block,) = (block for block in blocks_of(OWN_RULE, "python") if not block.title)
    run(block, names_of_examples(), str(OWN_RULE))


def test_own_rule_has_the_bits_of_its_reference(own_reference, tmp_path):
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "adamax.h").write_text(file_of(OWN_RULE, "csrc/rules/adamax.h"))
    library = tmp_path / "adamax.so"
    flags = ["-std=c++20", "-O2", "-ffp-contract=off", "-Wall", "-Werror", "-shared", "-fPIC"]
    defines = ["-DRULE=Adamax", '-DRULE_HEADER="rules/adamax.h"']
    folders = [f"-I{folder}" for folder in (tmp_path, ROOT / "csrc")]
    source = ROOT / "tests" / "native" / "rule_on_host.cpp"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *flags, *defines, *folders, source, "-o", library], check=True)
    native_step = ctypes.CDLL(str(library)).step

    options = {"lr": 0.3, "betas": (0.8, 0.95), "eps": 0.3, "weight_decay": 0.3}
    generator = np.random.default_rng(0)
    param = generator.standard_normal(1000).astype(np.float32)
    native = [param.copy(), np.zeros_like(param), np.zeros_like(param)]
    state = {}
    for step in range(1, 6):
        grad = (generator.standard_normal(1000) * 10.0 ** generator.integers(-20, 20, 1000)).astype(
            np.float32
        )
        grad[:4] = 0.0, -0.0, np.inf, np.nan
        param, state = own_reference(param, grad, state, **options)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (native[0], grad, *native[1:])]
        native_step(ctypes.c_int64(step), ctypes.c_int64(1000), *pointers)
    for ours, expected in zip(native, (param, state["exp_avg"], state["exp_inf"]), strict=True):
        is_nan = np.isnan(expected)
        np.testing.assert_array_equal(np.isnan(ours), is_nan)
        np.testing.assert_array_equal(
            ours.view(np.int32)[~is_nan], expected.view(np.int32)[~is_nan]
        )


def test_own_rule_enters_the_registry_as_it_is():
    pattern = r"using AllRules =\s+RuleList<([^>]*)>"
    registry = (ROOT / "csrc" / "rules" / "registry.h").read_text()
    last = re.search(pattern, registry)[1].split()[-1]
    page = re.search(pattern, file_of(OWN_RULE, "csrc/rules/registry.h"))[1]
    assert page.endswith(f"Adamax, {last}")


def test_own_class_has_torchs_signature_and_its_row_names_options(own_reference, monkeypatch):
    names = {"__name__": "fusedopt.optimizers.adamax"}
    exec(file_of(OWN_RULE, "fusedopt/optimizers/adamax.py"), names)
    optimizer = names["Adamax"]
    theirs = inspect.signature(torch.optim.Adamax).parameters
    ours = inspect.signature(optimizer).parameters
    assert {name: p.default for name, p in theirs.items()}.items() <= {
        name: p.default for name, p in ours.items()
    }.items()
    assert optimizer([torch.nn.Parameter(torch.ones(1))], fused=True).param_groups[0]["fused"]

    row = eval(file_of(OWN_RULE, "fusedopt/checking/rows.py"), {**vars(rows), "Adamax": optimizer})
    assert row.reference is own_reference
    for options in row.options:
        group = optimizer([torch.nn.Parameter(torch.ones(1))], **options).param_groups[0]
        assert options.keys() <= row.reference_options(group).keys()


def test_files_that_the_own_rule_page_names_exist():
    for name in re.findall(r"`((?:fusedopt|csrc|tests|benchmarks)/[\w/.]+)`", OWN_RULE.read_text()):
        assert (ROOT / name).exists(), name


def test_the_repositorys_address_is_that_of_the_package(monkeypatch, tmp_path):
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    repository = importlib.import_module("repository")
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text('[project.urls]\n# Repository = "https://example.org/none"\n')
    assert repository.address() == ""
    project.write_text('[project.urls]\nRepository = "https://example.org/fusedopt/"\n')
    assert repository.address() == "https://example.org/fusedopt"


def test_hooks_take_code_and_pictures_from_the_files(monkeypatch):
    """A function that is renamed, or a header without arithmetic, fails the site's build."""
    plugin_error = pytest.importorskip("mkdocs.exceptions").PluginError
    monkeypatch.syspath_prepend(ROOT / "docs" / "hooks")
    sources = importlib.import_module("sources")
    sgd = sources.reference_function("sgd", "fusedopt/reference/sgd.py")
    assert sgd.startswith("def sgd(")
    assert "Sutskever" not in sgd
    native = sources.native_functions("csrc/rules/adam.h")
    assert native.startswith("template <class T>\nFUSEDOPT_FN static Scalars<T> derive(")
    assert native.endswith("return s.step_size * exp_avg / denom;\n}")
    html = '<picture>\n<source srcset="d.svg">\n<img src="l.svg" alt="A\npath">\n</picture>'
    images = sources.on_page_markdown(html, page=None)
    assert images == "![A path](l.svg#only-light)\n![A path](d.svg#only-dark)"
    with pytest.raises(plugin_error, match="no function"):
        sources.reference_function("adamw", "fusedopt/reference/adam.py")
    with pytest.raises(plugin_error, match="does arithmetic"):
        sources.native_functions("csrc/rules/registry.h")
