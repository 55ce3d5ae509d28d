"""The notebook: how it is stored, and that what it says is so. The page on teaching: its links."""

from __future__ import annotations

import io
import json
import platform
import re
from contextlib import redirect_stdout
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from helpers import ISAS

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "from_formula_to_kernel.ipynb"
TEACHING = ROOT / "docs" / "teaching.md"
STORED = json.loads(NOTEBOOK.read_text())
CELLS = {cell["id"]: cell for cell in STORED["cells"]}


class Ran:
    """The names of the notebook, and what its cells print."""

    def __init__(self, folder: Path, cells: list[str]):
        self.names = {"__name__": "__main__"}
        self.printed = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for cell in cells:
                code = compile("".join(CELLS[cell]["source"]), f"{NOTEBOOK.name}: {cell}", "exec")
                with redirect_stdout(io.StringIO()) as out:
                    exec(code, self.names)
                self.printed[cell] = out.getvalue()

    def __getitem__(self, name):
        return self.names[name]

    def different_bits(self, ours, theirs):
        return [self["different_bits"](a, b) for a, b in zip(ours, theirs, strict=True)]


@pytest.fixture(scope="module")
def ran():
    """All cells, in their order, where Jupyter runs them."""
    mpl.use("Agg")
    code = [cell for cell in CELLS if CELLS[cell]["cell_type"] == "code"]
    ran = Ran(NOTEBOOK.parent, code)
    yield ran
    ran["plt"].close(ran["figure"])


def test_it_is_stored_without_outputs():
    assert (STORED["nbformat"], STORED["nbformat_minor"]) == (4, 5)
    assert len(CELLS) == len(STORED["cells"])
    for cell in STORED["cells"]:
        assert re.fullmatch(r"[a-z-]{1,64}", cell["id"])
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
            keys |= {"outputs", "execution_count"}
        assert cell.keys() == keys
        assert cell["metadata"] == {}
    as_jupyter_writes = json.dumps(STORED, indent=1, ensure_ascii=False) + "\n"
    assert NOTEBOOK.read_text() == as_jupyter_writes
    assert NOTEBOOK.stat().st_size < 40_000


def test_first_step_is_as_long_as_the_learning_rate(ran):
    signs = np.sign(ran["gradient"][1:])
    np.testing.assert_allclose(-ran["moved"][1:] / ran["LR"], signs, rtol=1e-4)
    assert -ran["moved"][0] / ran["LR"] == pytest.approx(0.5)  # a gradient of the size of eps


def test_order_of_operations_matters(ran):
    assert ran.printed["order"].split()[-1] == "1.0"
    assert "(1e8 + 1) - 1e8 = 0.0\n" in ran.printed["order"]
    assert all(ran.different_bits(*zip(*ran["pairs"].values(), strict=True)))


def test_formula_as_it_stands_is_the_reference_but_for_rounding(ran):
    ours, expected = ran["by_the_book"], ran["expected"]
    theta, m, v = ran.different_bits(ours, expected)
    assert 0 < theta < ran["SIZE"] / 2 < m
    assert v > 0
    assert ran["ulps"](ours[2], expected[2]).max() <= 8
    assert ran["of_terms"].max() <= 8
    assert ran["ulps"](ours[0], expected[0]).max() > 8 * ran["of_terms"].max()


def test_formula_and_reference_are_as_far_from_float64(ran):
    book, reference = ran["errors"]["ten lines"], ran["errors"]["reference"]
    assert max(*book, *reference) < 3
    assert reference[1] < book[1]


def test_formula_in_the_references_order_has_its_bits(ran):
    assert ran.different_bits(ran["in_order"], ran["expected"]) == [0, 0, 0]


def test_every_kernel_has_the_references_bits(ran):
    assert set(ran["kernels"]) == {(isa, count) for isa in ISAS for count in (1, 2)}
    for results in ran["kernels"].values():
        assert ran.different_bits(results, ran["expected"]) == [0, 0, 0]


def test_kernel_is_shown_in_a_clone(ran):
    shown = ran.printed["kernel"]
    assert shown in (ROOT / "csrc" / "rules" / "adam.h").read_text()
    assert re.findall(r"(\w+)\([^()]*\) \{$", shown, re.MULTILINE)[0] == "derive"
    assert " update(" in shown
    assert re.fullmatch(r"  template .* denom;\n  \}\n", shown, re.DOTALL)


def test_kernel_is_named_elsewhere(tmp_path):
    assert "csrc/rules/adam.h" in Ran(tmp_path, ["imports", "kernel"]).printed["kernel"]


@pytest.mark.parametrize("implementation", ["for-loop", "fused"])
def test_torch_is_equal_within_rounding(ran, implementation):
    results, expected = ran["torchs"][implementation], ran["expected"]
    assert ran.different_bits(results, expected)[0] > 0
    assert ran["ulps"](results[2], expected[2]).max() <= 8
    distance = np.abs(results[0].astype(np.float64) - expected[0])
    assert (distance / np.spacing(ran["terms"])).max() <= 8


@pytest.mark.skipif(platform.machine() != "x86_64", reason="said of x86-64 alone")
def test_torchs_bits_are_explained(ran):
    totals = [
        sum(ran.different_bits(results, ran["torchs"]["fused"]))
        for results in ran["imitations"].values()
    ]
    assert list(ran["imitations"]) == ["separate", "fma"]
    assert min(totals) < 1e-4 * ran["SIZE"]
    assert max(totals) > 0.1 * ran["SIZE"]


def test_numpys_root_is_rounded_to_nearest(ran):
    root = np.sqrt(ran["expected"][2])
    assert ran.different_bits([root], [ran["root_in_float64"]]) == [0]


def test_path_is_that_of_the_hand_derived_gradient(ran):
    assert ran["same"]
    adam, descent = ran["paths"].values()
    first, *_ = np.abs(np.diff(adam, axis=0))
    np.testing.assert_allclose(first, ran["RATE"], rtol=1e-6)
    assert adam[:, 0].max() > 0.1 > 0 > descent[:, 0].max()


def test_picture_is_labelled(ran):
    axes = ran["axes"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["Adam", "steepest descent", "minimum"]


def links_of(text: str) -> list[str]:
    return re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)


def test_links_lead_to_files():
    text = TEACHING.read_text()
    assert "../examples/from_formula_to_kernel.ipynb" in links_of(text)
    for link in links_of(text):
        assert (TEACHING.parent / link).is_file(), link
    markdown = [cell["source"] for cell in STORED["cells"] if cell["cell_type"] == "markdown"]
    links = links_of("".join(line for source in markdown for line in source))
    assert "../docs/teaching.md" in links
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link
