"""Who is compared: the same mathematics, or a line that says why not."""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

import pytest
import torch

from benchmark_helpers import CONDITIONS, TINY, no_advance
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants import others
from fusedopt.benchmarks.contestants.contests import (
    ALL_PEERS,
    COMPILED,
    CONTESTS,
    DEFAULT_PEERS,
    OURS,
    TOUCH,
)
from fusedopt.benchmarks.contestants.others import OTHERS, Other
from fusedopt.benchmarks.measuring import machine, measure
from fusedopt.benchmarks.measuring.checks import check
from fusedopt.benchmarks.measuring.measure import make_groups, measure_case
from fusedopt.benchmarks.reporting import case_tables, tables
from fusedopt.benchmarks.workloads.tensors import equal_tensors


@pytest.fixture
def package(monkeypatch):
    """A package of optimizers, installed for the length of a test."""
    module = ModuleType("package_of_optimizers")
    monkeypatch.setitem(sys.modules, "package_of_optimizers", module)
    classes = {"Adam": ("package_of_optimizers", "Adam", {})}
    monkeypatch.setitem(OTHERS, "package", Other("a-package", classes))
    monkeypatch.setitem(OTHERS, "package-8bit", Other("a-package", classes, low_bit=True))
    return module


@pytest.mark.parametrize("name", CONTESTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torch_computes_the_same(name, dtype):
    # torch's foreach implementation adds the momentum to the gradients themselves.
    overwrites = {"foreach": "overwrites the gradients"} if name == "Nesterov" else {}
    assert check(CONTESTS[name].peers(), dtype) == overwrites


def test_fused_is_timed_where_torch_has_it():
    with_fused = {name for name, contest in CONTESTS.items() if "fused" in contest.peers()}
    assert {"SGD", "Adagrad", "Adam", "AdamW"} <= with_fused


def refuses(groups):
    raise RuntimeError("not on this machine\nand many more lines")


def measure_tiny(peers):
    groups = make_groups(TINY, torch.float32)
    return measure_case(TINY, "Adam", groups, CONDITIONS, no_advance, peers)


def test_a_peer_that_computes_something_else_or_raises_is_reported_and_not_timed():
    peers = CONTESTS["Adam"].peers()
    peers["foreach"] = partial(torch.optim.Adam, betas=(0.8, 0.999))
    peers["fused"] = refuses
    case = measure_tiny(peers)
    assert set(case["peers"]) == {OURS, TOUCH, "for-loop"}
    assert case["fastest_torch"] == "for-loop"
    assert case["not_timed"] == {
        "foreach": "computes something else",
        "fused": "raises RuntimeError: not on this machine",
    }
    lines = case_tables.not_timed([case])
    assert lines[0] == "torch foreach computes something else: tiny, Adam"


def test_a_line_that_holds_for_all_cases_names_none():
    case = {"workload": "tiny", "optimizer": "Adam", "not_timed": {"optimi": "is not installed"}}
    assert case_tables.not_timed([case, case]) == ["optimi is not installed"]


def test_a_peer_that_cannot_step_the_workload_is_reported():
    class Small(torch.optim.Adam):
        def step(self):
            if len(self.param_groups) > 1:
                raise RuntimeError("one group only")
            super().step()

    case = measure_tiny({**CONTESTS["Adam"].peers(names=()), "for-loop": Small})
    assert case["not_timed"] == {"for-loop": "raises RuntimeError: one group only"}


def test_this_package_is_never_left_out():
    with pytest.raises(Exception, match="not on this machine"):
        measure_tiny({**CONTESTS["Adam"].peers(), TOUCH: refuses})


def test_a_peer_that_overwrites_gradients_is_not_timed():
    class Overwrites(torch.optim.Adam):
        def step(self):
            super().step()
            self.param_groups[0]["params"][0].grad.zero_()

    peers = {**CONTESTS["Adam"].peers(), "fused": Overwrites}
    assert check(peers, torch.float32) == {"fused": "overwrites the gradients"}


def test_a_case_without_any_implementation_of_torch_has_no_ratio():
    case = measure_tiny(CONTESTS["Adam"].peers(names=()))
    assert case["speedup"] is None
    (row,) = tables.all_tables({"cases": [case], "machine": {}})["steps"].rows
    assert row[-1] == "-"


def test_another_package_is_timed_and_its_states_are_counted(package):
    package.Adam = partial(torch.optim.Adam, amsgrad=False)
    case = measure_tiny(CONTESTS["Adam"].peers(names=("fused", "package")))
    assert set(case["peers"]) == {OURS, TOUCH, "fused", "package"}
    assert set(case["ratios"]) == {"fused", "package"}
    assert case["fastest_torch"] == "fused"
    steps = 4 * 3  # a float32 for each of three tensors
    assert case["peers"]["package"]["state_bytes_per_parameter"] == 8 + steps / 65
    assert all(timing["first_step"] > 0 for timing in case["peers"].values())


@pytest.mark.usefixtures("package")
def test_a_peer_has_only_the_optimizers_that_its_package_has():
    assert "package" not in CONTESTS["SGD"].peers(names=("package",))


def test_a_package_that_is_not_installed_is_a_line(monkeypatch):
    monkeypatch.setitem(OTHERS, "absent", Other("x", {"Adam": ("absent_package", "Adam", {})}))
    case = measure_tiny(CONTESTS["Adam"].peers(names=("fused", "absent")))
    assert case["not_timed"] == {"absent": "is not installed (absent_package)"}


def test_8_bits_are_timed_when_asked_for_and_marked(package):
    package.Adam = partial(torch.optim.Adam, betas=(0.8, 0.999))
    case = measure_tiny(CONTESTS["Adam"].peers(names=("package", "package-8bit")))
    assert case["not_timed"] == {"package": "computes something else"}
    assert case["low_bit"] == ["package-8bit"]
    lines = case_tables.not_timed([case])
    assert any(line.startswith("package-8bit keeps states of 8 bits") for line in lines)


def test_peers_are_chosen_by_name():
    assert bench.chosen_peers(()) == DEFAULT_PEERS
    assert bench.chosen_peers(["fused", "optimi", "fused"]) == ("fused", "optimi")
    assert bench.chosen_peers(["all"]) == ALL_PEERS
    assert {"deepspeed", "optimi", "bitsandbytes", COMPILED} <= set(ALL_PEERS)
    assert not [name for name in ALL_PEERS if name.endswith("8bit")]


def test_arguments_name_optimizers_that_there_are():
    for name, other in OTHERS.items():
        assert set(other.classes) <= set(CONTESTS), name


def test_deepspeed_is_told_the_accelerator(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(others, "import_module", lambda name: pytest.fail("imported too early"))
    factory = OTHERS["deepspeed"].factory("Adam")
    monkeypatch.setattr(others, "import_module", lambda name: torch.optim)
    monkeypatch.setattr(
        torch.optim, "DeepSpeedCPUAdam", lambda groups, adamw_mode: groups, raising=False
    )
    factory([{"params": [torch.zeros(1)]}])
    assert others.os.environ["DS_ACCELERATOR"] == "cpu"
    monkeypatch.delenv("DS_ACCELERATOR")


def test_a_step_is_compiled_for_the_workload(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step: compiled.append(step) or step)
    peers = CONTESTS["Adam"].peers(names=(COMPILED,))
    case = measure_tiny(peers)
    assert len(compiled) == 2  # for the comparison, and for the workload
    assert case["fastest_torch"] == COMPILED
    assert "compile" in tables.all_tables({"cases": [case], "machine": {}})["details"].notes[0]


def test_too_many_tensors_are_not_compiled():
    workload = equal_tensors(measure.MOST_COMPILED + 1, 1)
    groups = make_groups(workload, torch.float32)
    peers = CONTESTS["SGD"].peers(names=("fused", COMPILED))
    case = measure_case(workload, "SGD", groups, CONDITIONS, no_advance, peers)
    assert set(case["not_timed"]) == {COMPILED}


def test_versions_of_packages_are_recorded():
    assert machine.peer_versions(("fused", "foreach")) == {}
    named = machine.peer_versions(tuple(OTHERS))
    assert set(named) <= {other.distribution for other in OTHERS.values()}
