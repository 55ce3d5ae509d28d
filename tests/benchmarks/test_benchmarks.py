"""The benchmark: what it steps, what it compares and what it reports. Never how long it takes."""

from __future__ import annotations

import json
import math

import pytest
import torch
from typer.testing import CliRunner

from benchmark_helpers import MINIATURE, TINY, no_advance
from fusedopt.benchmarks import documents
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants.contests import CONTESTS, COPY, OURS, TOUCH, UNFUSED
from fusedopt.benchmarks.contestants.floors import Copy, Touch
from fusedopt.benchmarks.measuring import describe, machine, measure
from fusedopt.benchmarks.measuring.measure import COPIES, Conditions, make_groups, measure_case
from fusedopt.benchmarks.measuring.timing import (
    HostClock,
    Summary,
)
from fusedopt.benchmarks.reporting import report, table
from fusedopt.benchmarks.workloads.tensors import GPU_WORKLOADS, LONG, WORKLOADS
from fusedopt.cli import app


@pytest.mark.parametrize(
    ("name", "groups", "tensors", "elements"),
    [
        ("one-64m", 1, 1, 67_108_864),
        ("gpt2-124m", 1, 148, 124_439_808),
        ("bert-base", 1, 199, 109_482_240),
        ("vit-b-16", 1, 152, 86_567_656),
        ("llama-1b", 1, 146, 1_235_814_400),
        ("embeddings", 1, 7, 64_164_865),
        ("resnet-50", 1, 161, 25_557_032),
        ("lora", 1, 448, 19_988_480),
        ("mlp", 1, 6, 269_322),
        ("actor-critic", 2, 18, 217_870),
        ("1000x64", 1, 1_000, 64_000),
        ("3000x3500", 1, 3_000, 10_500_000),
        ("500-groups", 500, 500, 2_048_000),
    ],
)
def test_workloads_have_the_sizes_of_their_models(name, groups, tensors, elements):
    workload = WORKLOADS[name]
    sizes = (len(workload.groups), workload.tensors, workload.elements)
    assert sizes == (groups, tensors, elements)


def test_every_group_has_a_rate_of_its_own_and_no_gradient_is_zero():
    groups = make_groups(WORKLOADS["500-groups"], torch.float32)
    assert len({group["lr"] for group in groups}) == 500
    assert all(param.grad.abs().max() > 0 for group in groups for param in group["params"])


@pytest.mark.parametrize("states", range(4))
def test_touch_moves_the_parameter_and_as_many_states_as_it_says(states):
    param = torch.arange(1000.0)
    param.grad = torch.ones(1000)
    optimizer = Touch([param], states=states, factor=0.5)
    for _ in range(2):
        optimizer.step()
    assert torch.equal(param, torch.arange(1000.0) + 1)
    state = optimizer.state[param]
    assert list(state) == ["first", "second", "third"][:states]
    assert all(torch.equal(value, torch.full((1000,), 1.0)) for value in state.values())


def test_touch_changes_no_value_by_default():
    param = torch.randn(1000)
    param.grad = torch.randn(1000)
    before = param.clone()
    optimizer = Touch([{"params": [param], "lr": 0.1}], states=1)
    optimizer.step()
    optimizer.state[param]["first"].copy_(before)
    optimizer.step()
    assert torch.equal(param, before)
    assert torch.equal(optimizer.state[param]["first"], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7, 64])
def test_touch_moves_the_bytes_of_16_bits_and_converts_nothing(dtype, size):
    """Patterns that a conversion would change, NaN among them, are added to zeros as they are."""
    param = torch.zeros(size, dtype=dtype)
    param.grad = torch.full((size,), 0x7E01, dtype=torch.int16).view(dtype)
    optimizer = Touch([param], states=2, factor=1.0)
    optimizer.step()
    even = size // 2 * 2
    words = param[:even].view(torch.float32)
    assert torch.equal(words, param.grad[:even].view(torch.float32))
    states = optimizer.state.values()
    assert sum(value.nbytes for state in states for value in state.values()) == 2 * 2 * even


def test_touch_refuses_a_number_of_states_that_it_does_not_have():
    with pytest.raises(ValueError, match="number of states: 4"):
        Touch([torch.zeros(1)], states=4)


@pytest.mark.parametrize("name", CONTESTS)
def test_ideal_bytes_count_the_states_that_there_are(name):
    param = torch.zeros(100)
    param.grad = torch.ones(100)
    optimizer = CONTESTS[name].peers()[OURS]([{"params": [param], "lr": 0.1}])
    optimizer.step()
    states = sum(value.shape == param.shape for value in optimizer.state[param].values())
    assert CONTESTS[name].ideal_bytes(100, 4) == 100 * 4 * (3 + 2 * states)


@pytest.mark.parametrize("dtype", bench.DTYPES)
def test_a_miniature_run_measures_and_saves_everything(dtype, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "WORKLOADS", {"tiny": TINY})
    monkeypatch.setattr(bench, "PARTS", {})
    path = tmp_path / "results" / "tiny.json"
    threads_before = torch.get_num_threads()
    result = bench.run(
        optimizers=[*CONTESTS], threads=1, dtype=dtype, json=path, settings=MINIATURE
    )
    assert json.loads(path.read_text()) == result
    assert torch.get_num_threads() == threads_before
    where = {"date", "machine", "versions", "isa", "environment", "commit"}
    assert set(result) == where | {"threads", "settings", "cases", "skipped", "parts"}
    assert set(result["machine"]) == {"processor", "cores", "memory_bytes", "platform"}
    versions = {"fusedopt", "torch", "numpy", "python", "compiler", "peers"}
    assert set(result["versions"]) == versions
    assert result["threads"] == 1
    assert result["settings"]["dtype"] == dtype
    assert [case["optimizer"] for case in result["cases"]] == [*CONTESTS]
    for case in result["cases"]:
        assert (case["tensors"], case["elements"], case["groups"]) == (3, 65, 2)
        for timing in case["peers"].values():
            rounds = len(timing["seconds"]) + len(timing["left_out"])
            assert rounds % (1 + COPIES) == 0  # at each place in memory
            assert timing["seconds"]
            assert all(math.isfinite(seconds) and seconds > 0 for seconds in timing["seconds"])
        for quotient in (case["share_of_touch"], case["speedup"]):
            assert quotient is None or all(math.isfinite(value) for value in quotient.values())
    capsys.readouterr()
    documents.main([str(path)])
    of_torch = sum(case["cold"]["speedup"] is not None for case in result["cases"])
    assert capsys.readouterr().out.count("\n| tiny | ") == 2 * len(CONTESTS) + of_torch


def test_all_values_stay_finite_over_many_steps():
    groups = make_groups(TINY, torch.float16)
    optimizers = [
        factory([dict(group) for group in groups])
        for contest in CONTESTS.values()
        for name, factory in contest.peers().items()
        if name in (OURS, TOUCH)
    ]
    for _ in range(1000):
        for optimizer in optimizers:
            optimizer.step()
    assert all(param.isfinite().all() for group in groups for param in group["params"])


@pytest.mark.parametrize(
    ("summary", "tie"),
    [
        (Summary(1.02, 1.01, 1.03), True),
        (Summary(1.1, 0.99, 1.2), True),
        (Summary(1.1, 1.05, 1.2), False),
        (Summary(0.9, 0.85, 0.95), False),
    ],
)
def test_a_ratio_within_margin_or_spread_is_a_tie(summary, tie):
    assert describe.is_tie(summary) is tie


@pytest.mark.parametrize("quick", [True, False])
def test_adam_runs_on_every_workload_by_default(quick):
    cases = bench.plan(quick, (), ()).cases
    left_out = LONG if quick else ()
    assert [workload.name for workload, _ in cases] == [n for n in WORKLOADS if n not in left_out]
    assert all("Adam" in names for _, names in cases)
    assert {*UNFUSED} <= {name for _, names in cases for name in names}


def test_a_plan_takes_the_names_it_is_given():
    plan = bench.plan(False, ["mlp", "costs"], ["AdamW", "SGD"])
    assert plan == bench.Plan([(WORKLOADS["mlp"], ["AdamW", "SGD"])], ["costs"])


def test_a_full_run_on_the_cpu_has_every_part():
    assert bench.plan(False, (), ()).parts == [*bench.PARTS]
    assert bench.plan(True, (), ()).parts == []


@pytest.mark.parametrize("states", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copy_moves_as_many_bytes_as_a_step(states, dtype):
    groups = make_groups(TINY, dtype)
    copy = Copy(groups, states)
    copy.step()
    moved = copy._source.nbytes + copy._target.nbytes
    assert moved == TINY.elements * dtype.itemsize * (3 + 2 * states) // 2 * 2
    assert torch.equal(copy._source, copy._target)


def test_the_copy_is_timed_on_a_gpu_only():
    assert COPY not in CONTESTS["Adam"].peers()
    assert set(CONTESTS["Adam"].peers("cuda")) == {*CONTESTS["Adam"].peers(), COPY}


class FakeGpuClock(HostClock):
    """The host's clock, with numbers where a GPU's stream would have them."""

    def measure(self, step, timing):
        super().measure(step, timing)
        timing.stream_seconds.append(timing.seconds[-1])


GPU_MACHINE = {
    "processor": "AMD EPYC", "cores": 16, "memory_bytes": 2**37, "platform": "Linux x86_64",
    "gpu": {
        "name": "NVIDIA H100 80GB HBM3", "memory_bytes": 79 * 2**30, "multiprocessors": 132,
        "compute_capability": "9.0", "driver": "580.1", "cuda": "13.0",
    },
}  # fmt: skip


@pytest.fixture
def gpu_result(monkeypatch):
    """A miniature result as a GPU's is, measured on the CPU."""
    monkeypatch.setattr(measure, "clock_of", lambda device: FakeGpuClock())
    groups = make_groups(TINY, torch.float32)
    cases = [
        measure_case(
            TINY, name, groups, Conditions(MINIATURE), no_advance, CONTESTS[name].peers("cuda")
        )
        for name in ("Adam", "RMSprop")
    ]
    settings = {"dtype": "float32", "device": "cuda"}
    return {**machine.describe(), "machine": GPU_MACHINE, "settings": settings, "cases": cases}


def test_a_gpus_case_is_compared_with_a_copy(gpu_result):
    for case in gpu_result["cases"]:
        copy, ours = case["peers"][COPY], case["peers"][OURS]
        assert case["copy_bytes_per_second"] == case["ideal_bytes"] / copy["median"]
        assert case["share_of_copy"]["median"] > 0
        assert case["fastest_torch"] != COPY
        assert len(ours["stream_seconds"]) == len(ours["seconds"]) > 0
        assert ours["stream_median"] > 0


def test_a_gpus_table_has_a_column_for_the_copy(gpu_result):
    lines = report.markdown(gpu_result).splitlines()
    assert lines[0] == (
        "NVIDIA H100 80GB HBM3, 79 GiB, driver 580.1, CUDA 13.0, host AMD EPYC, float32, "
        + lines[0].partition("float32, ")[2]
    )
    header, rule, *rows = (line.split("|") for line in lines if line.startswith("|"))
    assert [title.strip() for title in header[1:8]] == [
        "workload", "optimizer", "fusedopt", "GB/s", "touch", "copy", "for-loop",
    ]  # fmt: skip
    assert len(rows) == 2
    assert all(len(row) == len(header) == len(rule) for row in rows)
    assert lines[-1].count("copy: ") == 1
    report.show(gpu_result)


def test_a_results_file_is_named_after_the_gpu_or_the_processor():
    assert machine.file_name(GPU_MACHINE) == "nvidia-h100-80gb-hbm3.json"
    host = {key: value for key, value in GPU_MACHINE.items() if key != "gpu"}
    assert machine.file_name(host) == "amd-epyc-16-cores.json"


def test_results_go_into_a_folder_under_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "WORKLOADS", {"tiny": TINY})
    result = bench.run(only=["tiny"], threads=1, json=tmp_path, settings=MINIATURE)
    (path,) = tmp_path.iterdir()
    assert path.name == machine.file_name(result["machine"])
    assert json.loads(path.read_text()) == result


def test_a_gpu_runs_every_rule_on_the_largest_tensor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = bench.plan(False, (), (), "cuda")
    cases = {workload.name: names for workload, names in plan.cases}
    assert list(cases) == list(GPU_WORKLOADS)
    assert plan.parts == []
    assert set(cases["one-256m"]) == set(CONTESTS)
    assert all(names[0] == "Adam" and len(set(names)) == len(names) for names in cases.values())
    assert GPU_WORKLOADS["one-256m"].elements == 268_435_456


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = CliRunner().invoke(app, ["bench", "--device", "cuda"])
    assert outcome.exit_code == 2
    assert "no usable GPU" in outcome.output


@pytest.mark.parametrize("option", ["--only", "--optimizer", "--peers", "--dtype", "--device"])
def test_an_unknown_name_is_refused(option):
    outcome = CliRunner().invoke(app, ["bench", option, "nonsense"])
    assert outcome.exit_code == 2
    assert "nonsense" in outcome.output


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 us"), (9.999e-4, "1.00 ms"), (0.0567, "56.7 ms"), (2.0, "2.00 s")],
)
def test_times_have_three_digits(seconds, text):
    assert table.format_seconds(seconds) == text
