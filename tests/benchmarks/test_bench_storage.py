"""What the benchmark measures of parameters and states that are stored in fewer bytes."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import ModuleType

import pytest
import torch

from benchmark_helpers import MINIATURE, bars
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants.contests import OURS, TOUCH
from fusedopt.benchmarks.contestants.floors import touch_memory_of
from fusedopt.benchmarks.contestants.others import OTHERS
from fusedopt.benchmarks.contestants.ways import (
    BASELINE,
    MIXED,
    OFFLOADED,
    PLAIN,
    ROUNDED,
    STOCHASTIC,
    THEIRS,
    WAYS,
    WITH_MASTER,
    Converting,
    contestants,
)
from fusedopt.benchmarks.measuring import resident, storage
from fusedopt.benchmarks.measuring.checks import UnfitError, check_stored
from fusedopt.benchmarks.measuring.describe import moved_bytes, stored_bytes
from fusedopt.benchmarks.measuring.measure import Conditions, LackOfMemoryError
from fusedopt.benchmarks.measuring.shared_states import SharedStates
from fusedopt.benchmarks.measuring.storage import Formats
from fusedopt.benchmarks.measuring.timing import interleave
from fusedopt.benchmarks.reporting import compare, plots, report, tables, targets
from fusedopt.benchmarks.workloads.tensors import OFFLOAD, Workload, equal_tensors

SMALL = Workload("small", [[(64, 128), (17,)], [(5000,)]])
ELEMENTS = 64 * 128 + 17 + 5000
CONDITIONS = Conditions(MINIATURE, peers=("fused", "deepspeed"))


@pytest.fixture
def deepspeed(monkeypatch):
    """A package in the place of DeepSpeed that steps only what has gradients of its own dtype."""

    class Adam(torch.optim.AdamW):
        def __init__(self, groups, weight_decay=0.0, fp32_optimizer_states=True):
            super().__init__(groups, weight_decay=weight_decay, fused=True)

        def step(self):
            for group in self.param_groups:
                assert all(param.dtype == param.grad.dtype for param in group["params"])
            super().step()

    package = ModuleType("deepspeed.ops.adam")
    package.DeepSpeedCPUAdam = Adam
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops", ModuleType("deepspeed.ops"))
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", package)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def measured(ways=tuple(WAYS), threads=(1,), yardsticks=(), conditions=CONDITIONS):
    with bars() as progress:
        return storage.measure(SMALL, ways, list(threads), yardsticks, conditions, progress)


def started(ways, peers=()):
    with bars() as progress:
        return storage.start(SMALL, contestants(ways, peers), progress).warm


@pytest.mark.parametrize(
    ("way", "parameter", "states"),
    [
        (PLAIN, 4, 8),
        (f"{PLAIN}, 16-bit states", 4, 4),
        (f"{MIXED}, 16-bit states", 4, 4),
        (WITH_MASTER, 2, 10),
        (f"{WITH_MASTER}, 16-bit states", 2, 6),
        (ROUNDED, 2, 4),
        (STOCHASTIC, 2, 4),
    ],
)
def test_bytes_are_those_of_the_tensors(way, parameter, states):
    ours = started([way])[way, OURS].optimizer
    gradient = WAYS[way].grad.itemsize
    assert stored_bytes(ours) == ELEMENTS * (parameter + states)
    assert moved_bytes(ours) == ELEMENTS * (2 * (parameter + states) + gradient)


@pytest.mark.parametrize("way", [name for name in WAYS if name.endswith("8-bit states")])
def test_bytes_of_codes_are_those_of_codes_and_scales(way):
    """A parameter of 17 elements has float32 states."""
    ours = started([way])[way, OURS].optimizer
    codes, blocks = 64 * 128 + 5000, 32 + 20
    master = 2 if way.startswith(WITH_MASTER) else 0
    parameter = WAYS[way].param.itemsize + master
    assert stored_bytes(ours) == ELEMENTS * parameter + 2 * (codes + 4 * blocks + 4 * 17)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", [1 << 18, 1000])
def test_the_floor_of_a_way_moves_its_bytes(way, piece, monkeypatch):
    """But for what is less than a float32, each byte is read and written by one piece."""
    monkeypatch.setattr("fusedopt.benchmarks.contestants.floors._PIECE", piece)
    ours = started([way])[way, OURS].optimizer
    floor = touch_memory_of(ours, {})
    params = [param for group in floor.param_groups for param in group["params"]]
    states = [state for param in params for state in floor.state[param].values()]
    written = sum(words.nbytes for words in (*params, *states))
    assert stored_bytes(ours) - 60 <= written <= stored_bytes(ours)
    assert len({words.data_ptr() for words in (*params, *states)}) == len(params) + len(states)
    sources = {(param.grad.data_ptr(), param.numel()) for param in params}
    gradients = ELEMENTS * WAYS[way].grad.itemsize
    read = sum(4 * count for _, count in sources)
    assert 0.8 * gradients <= read <= 1.2 * gradients  # tails take the first elements again


@pytest.mark.parametrize("way", WAYS)
def test_a_floor_changes_nothing(way):
    ours = started([way])[way, OURS].optimizer

    def values():
        return [
            tensor.clone()
            for group in ours.param_groups
            for param in group["params"]
            for tensor in (param, param.grad, *ours.state[param].values())
        ]

    before = values()
    floor = touch_memory_of(ours, {})
    for _ in range(2):
        floor.step()
    assert all(map(torch.equal, before, values()))


def test_each_format_has_one_memory():
    warm = started([*WAYS], ("fused",))
    by_format = {}
    for (_, who), each in warm.items():
        if who == TOUCH:
            continue
        for group in each.optimizer.param_groups:
            for index, param in enumerate(group["params"]):
                states = each.optimizer.state[param]
                sized = [s for s in states.values() if s.dim() > 0 and s.dtype != torch.int16]
                tensors = [param, param.grad, *sized]
                for at, tensor in enumerate(tensors):
                    kind = "state" if at > 1 else "gradient" if at else "parameter"
                    key = (kind, index, tensor.dtype, tensor.shape)
                    by_format.setdefault(key, set()).add(tensor.data_ptr())
    most = {"parameter": 1, "gradient": 1, "state": 2}
    assert all(len(places) == most[key[0]] for key, places in by_format.items())
    parameters = {key[2] for key in by_format if key[0] == "parameter"}
    assert parameters == {torch.float32, torch.bfloat16, torch.float16}


class Stepped:
    """An optimizer that has states."""

    def __init__(self, param, **state):
        self.param_groups = [{"params": [param]}]
        self.state = {param: state}


def test_an_optimizer_shares_all_kinds_of_states_or_none():
    """Codes whose scales are somebody else's would stand for other numbers."""

    def codes():
        return torch.zeros(8, dtype=torch.uint8)

    params = [torch.zeros(8) for _ in range(3)]
    owner = Stepped(params[0], exp_avg=codes(), scale=torch.zeros(2))
    same = Stepped(params[1], state1=codes(), absmax=torch.zeros(2), map=torch.zeros(3))
    other = Stepped(params[2], state1=codes(), absmax=torch.zeros(2), map=torch.zeros(2))
    own = dict(other.state[params[2]])
    shared = SharedStates()
    for optimizer in (owner, same, other):
        shared.share(optimizer)
    assert same.state[params[1]]["state1"] is owner.state[params[0]]["exp_avg"]
    assert same.state[params[1]]["absmax"] is owner.state[params[0]]["scale"]
    assert all(other.state[params[2]][name] is own[name] for name in own)


@pytest.mark.usefixtures("deepspeed")
def test_every_way_is_a_row_beside_torchs_float32():
    rows = measured(threads=(1, 2), yardsticks=("deepspeed",))
    assert [(row["threads"], row["way"]) for row in rows] == [
        (threads, way) for threads in (1, 2) for way in WAYS
    ]
    for row in rows:
        assert {OURS, TOUCH} <= set(row["peers"])
        assert row["fastest_torch"] == BASELINE
        assert row["speedup"]["median"] > 0
        assert row["share_of_touch"]["median"] > 0
        assert row["not_timed"] == {}
    with_all = {row["way"]: set(row["ratios"]) for row in rows if row["threads"] == 2}
    assert with_all[PLAIN] == {"fused", "deepspeed"}
    assert with_all[ROUNDED] == {"fused", "deepspeed"}
    assert with_all[MIXED] == with_all[WITH_MASTER] == {"deepspeed"}
    with_one = [set(row["ratios"]) for row in rows if row["threads"] == 1]
    assert set().union(*with_one) == {"fused"}  # a peer may be compiled for all threads
    assert all("deepspeed" in row["yardsticks"] for row in rows if row["threads"] == 2)


def test_the_ratio_is_to_the_baseline_in_the_same_rounds():
    """In bfloat16, too, where torch has a fused step of its own."""
    rows = {row["way"]: row for row in measured([PLAIN, ROUNDED])}
    baseline = rows[PLAIN]["peers"]["fused"]["seconds"]
    ours = rows[ROUNDED]["peers"][OURS]["seconds"]
    ratios = sorted(a / b for a, b in zip(baseline, ours, strict=True))
    speedup = rows[ROUNDED]["speedup"]
    # A result's rounds have five digits.
    assert 0.999 * ratios[0] <= speedup["median"] <= 1.001 * ratios[-1]


@pytest.mark.usefixtures("deepspeed")
def test_a_slow_peer_has_rounds_of_its_own_beside_ours(monkeypatch):
    rounds = []

    def note(steps, *rest, **floor):
        rounds.append({*steps})
        return interleave(steps, *rest, **floor)

    monkeypatch.setattr(storage, "_SLOW", 0)
    monkeypatch.setattr(storage, "interleave", note)
    (row,) = measured([PLAIN])
    assert rounds == [
        {(PLAIN, OURS), (PLAIN, TOUCH), (PLAIN, "fused")},
        {(PLAIN, OURS), (PLAIN, TOUCH), (PLAIN, "deepspeed")},
    ]
    assert set(row["ratios"]) == set(row["peers"]) - {OURS, TOUCH} == {"fused", "deepspeed"}


@pytest.mark.usefixtures("deepspeed")
def test_a_converting_step_is_a_float32_step_of_copies():
    groups = Formats(SMALL).groups(WAYS[WITH_MASTER])
    reference = Formats(SMALL).groups(WAYS[WITH_MASTER])
    optimizer = Converting(groups, THEIRS["deepspeed"][PLAIN])
    masters = [param.float() for group in reference for param in group["params"]]
    for master, param in zip(masters, (p for g in reference for p in g["params"]), strict=True):
        master.grad = param.grad.float()
    lrs = [group["lr"] for group in groups]
    by_group = [{"params": masters[:2], "lr": lrs[0]}, {"params": masters[2:], "lr": lrs[1]}]
    expected = torch.optim.AdamW(by_group, weight_decay=0.01, fused=True)
    for _ in range(3):
        optimizer.step()
        expected.step()
    stepped = [param for group in groups for param in group["params"]]
    assert all(param.dtype == torch.bfloat16 for param in stepped)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(stepped, masters, strict=True))


def test_peers_are_checked_in_each_way():
    wrong = partial(torch.optim.AdamW, betas=(0.5, 0.6), fused=True)
    factories = {(PLAIN, OURS): WAYS[PLAIN].optimizer, (PLAIN, "fused"): wrong}
    assert check_stored(factories) == {PLAIN: {"fused": "computes something else"}}
    with pytest.raises(UnfitError, match="bfloat16: computes something else"):
        check_stored({(ROUNDED, OURS): wrong})


def test_this_package_computes_the_same_in_every_way():
    assert check_stored(contestants(WAYS, ("fused",))) == {}


def test_only_who_is_known_to_overwrite_gradients_may():
    class Overwrites(torch.optim.AdamW):
        def step(self):
            super().step()
            self.param_groups[0]["params"][0].grad.zero_()

    reasons = check_stored({(PLAIN, "deepspeed"): Overwrites, (PLAIN, "optimi"): Overwrites})
    assert reasons == {PLAIN: {"deepspeed": "overwrites the gradients"}}
    own, shared = Formats(SMALL), Formats(SMALL)
    assert own.groups(WAYS[PLAIN], own_gradients=True)[0]["params"][0].grad.data_ptr() != (
        own.groups(WAYS[PLAIN])[0]["params"][0].grad.data_ptr()
    )
    first, second = (shared.groups(WAYS[PLAIN])[0]["params"][0] for _ in range(2))
    assert first.grad.data_ptr() == second.grad.data_ptr()
    assert first.data_ptr() == second.data_ptr()


def test_peers_name_ways_that_there_are():
    for peer, ways in THEIRS.items():
        assert peer == "fused" or peer in OTHERS
        assert set(ways) <= set(WAYS)
    assert set(OFFLOADED) <= set(WAYS)
    assert OFFLOAD.elements == 256 * 2**20
    assert {who for _, who in contestants(WAYS, ())} == {OURS, "fused"}


def test_a_part_for_which_there_is_not_the_memory_is_a_line(monkeypatch):
    monkeypatch.setattr(storage, "bytes_available", lambda device: 10)
    with pytest.raises(LackOfMemoryError, match="small: needs about 0 GiB"):
        measured([PLAIN])
    with bars() as progress:
        parts, lines = bench.measure_parts(["offload"], CONDITIONS, progress)
    assert parts == {}
    assert lines == ["offload: needs about 16 GiB, 0 are free"]


def test_parts_with_dtypes_of_their_own_belong_to_a_run_in_float32():
    assert set(bench.OF_OWN_DTYPES) <= set(bench.plan(False, (), ()).parts)
    assert not set(bench.OF_OWN_DTYPES) & set(bench.plan(False, (), (), dtype="bfloat16").parts)
    assert bench.plan(True, ["offload"], (), dtype="bfloat16").parts == ["offload"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_run_takes_less(quick, monkeypatch):
    seen = []

    def note(workload, ways, threads, *rest):
        seen.append(workload.name)
        return []

    monkeypatch.setattr(storage, "measure", note)
    for part in (storage.storage, storage.offload):
        part(Conditions(MINIATURE, quick=quick), None)
    large = ["one-64m"] if quick else ["one-64m", "gpt2-124m"]
    assert seen == [*large, "one-64k", "offload-16m" if quick else "offload"]


def test_memory_is_measured_in_a_process_for_each_way(monkeypatch):
    asked = []
    answer = '{"parameter": 4, "computed": 12, "resident": 12, "peak": 12}'
    monkeypatch.setattr(resident, "run_python", lambda *args: asked.append(args[2:]) or answer)
    with bars() as progress:
        rows = resident.memory(CONDITIONS, progress)
    assert [(row["way"], row["who"], resident.WORKLOAD) for row in rows] == asked
    assert (f"{PLAIN}, 8-bit states", OURS, "one-64m") in asked
    assert not [way for way, *_ in asked if way.startswith(MIXED)]


def test_resident_memory_is_what_the_tensors_take(monkeypatch):
    monkeypatch.setitem(resident.WORKLOADS, "some", equal_tensors(1, 8 << 20))
    found = resident.measure(f"{WITH_MASTER}, 8-bit states", OURS, "some")
    assert found["parameter"] == 2
    assert found["computed"] == 2 + 2 + 2 * (1 + 4 / 256)
    assert found["computed"] - 0.1 <= found["resident"] <= found["computed"] + 0.3
    assert found["peak"] >= found["resident"]


@pytest.fixture
def result(monkeypatch, deepspeed):
    parts = {
        "storage": lambda *_: measured(threads=(1, 2)),
        "offload": lambda *_: measured(OFFLOADED, yardsticks=("deepspeed",)),
        "memory": lambda *_: [
            {"workload": "one-64m", "way": f"{PLAIN}, 8-bit states", "who": OURS,
             "parameter": 4, "computed": 6.03, "resident": 6.035, "peak": 6.1},
        ],
    }  # fmt: skip
    monkeypatch.setattr(bench, "PARTS", parts)
    return bench.run(only=[*parts], threads=2, settings=MINIATURE)


def test_parts_have_tables_pictures_changes_and_aims(result, tmp_path, capsys):
    shown = tables.all_tables(result)
    assert {"storage", "ways", "offload", "memory", "targets"} == set(shown) - {"steps", "details"}
    assert all(len(row) == len(made.columns) for made in shown.values() for row in made.rows)
    report.show(result, aims=True)
    assert "deepspeed's best" in capsys.readouterr().out
    names = {path.name for path in plots.draw_all(result, tmp_path)}
    assert {"benchmark-storage-dark.svg", "benchmark-offload-light.svg"} <= names
    again = json.loads(json.dumps(result))
    cases = {change.case for change in compare.compare(result, again)}
    assert f"small, {PLAIN}, 8-bit states, threads: 2" in cases
    aims = [row[0].partition(":")[0] for row in targets.targets([], result).rows]
    assert aims[-1] == f"bytes per parameter, {PLAIN}, 8-bit states"
    assert sum("deepspeed's best" in aim for aim in aims) == len(OFFLOADED) - 1


def test_a_way_that_falls_short_is_named():
    def row(way, median):
        summary = {"median": median, "lower_quartile": median, "upper_quartile": median}
        return {"workload": "w", "way": way, "threads": 2, "speedup": summary, "low_bit": [],
                "ratios": {}}  # fmt: skip

    rows = [row("a, 8-bit states", 1.1), row("b, 8-bit states", 1.3), row("a, 16-bit states", 2.0)]
    made = targets.targets([], {"threads": 2, "parts": {"storage": rows}}).rows
    assert [(line[0].partition(",")[0], line[2], line[3]) for line in made] == [
        ("16-bit states", "2.00", "yes"), ("8-bit states", "1.10", "no"),
    ]  # fmt: skip
