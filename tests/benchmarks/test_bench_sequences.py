"""What the benchmark measures between backward and the next forward."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch

import fusedopt
from benchmark_helpers import MINIATURE, TINY, bars
from fusedopt.benchmarks import run as bench
from fusedopt.benchmarks.contestants import sequences as contestants
from fusedopt.benchmarks.contestants.contests import OURS, TOUCH
from fusedopt.benchmarks.contestants.sequences import SEQUENCES, Contestant, Sequence, ours, torchs
from fusedopt.benchmarks.measuring import sequences
from fusedopt.benchmarks.measuring.checks import UnfitError
from fusedopt.benchmarks.measuring.measure import (
    Conditions,
    LackOfMemoryError,
    make_groups,
)
from fusedopt.benchmarks.measuring.sequence_checks import check_norms, check_sequences
from fusedopt.benchmarks.reporting import compare, report, tables, targets

CONDITIONS = Conditions(MINIATURE)
PLAIN, BY_HAND, IN_16_BITS, AVERAGING, ZEROING, LONGEST = SEQUENCES


def started(chosen=SEQUENCES):
    """Groups, and everyone who has taken a step on them."""
    groups = make_groups(TINY, torch.float32)
    everyone = sequences.contestants_of(chosen, ("fused",))
    return groups, everyone, sequences.start(everyone, groups)


def test_every_contestant_has_this_packages_results():
    everyone = sequences.contestants_of(SEQUENCES, ("for-loop", "foreach", "fused"))
    assert {name for name, who in everyone if who == OURS} == {each.name for each in SEQUENCES}
    assert {name for name, who in everyone if who != OURS} == {
        each.name for each in (PLAIN, AVERAGING, ZEROING, LONGEST)
    }
    assert check_sequences(everyone) == {}


def without(fault, contestant=None):
    """Torch's sequence, from whose calls something is taken."""
    contestant = contestant or torchs(LONGEST, "fused")
    return replace(contestant, calls=lambda *given: fault(contestant.calls(*given)))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda calls: calls[1:], "computes something else"),  # does not clip
        (lambda calls: [calls[1], calls[0], *calls[2:]], "computes something else"),  # too late
        (lambda calls: [calls[0], *calls[2:]], "computes something else"),  # does not step
        (lambda calls: [*calls[:2], calls[3]], "computes something else"),  # does not average
        (lambda calls: calls[:3], "leaves gradients"),
        (lambda calls: [*calls, partial(exec, "raise OSError('full')")], "raises OSError: full"),
    ],
)
def test_who_does_something_else_is_not_timed(fault, said):
    who = LONGEST.name, "fused"
    assert check_sequences({who: without(fault)}) == {who: said}
    with pytest.raises(UnfitError, match=f"^a name: {said}"):
        check_sequences({("a name", OURS): without(fault)})


def test_clipping_to_another_norm_is_found():
    contestant = torchs(PLAIN, "fused")
    wrong = replace(contestant, calls=lambda made, norm: contestant.calls(made, 1.1 * norm))
    who = "clip, step", "fused"
    assert check_sequences({who: wrong}) == {who: "computes something else"}


def test_norms_are_compared():
    norms = {OURS: fusedopt.get_total_norm, "fused": torch.nn.utils.get_total_norm}
    for dtype in (torch.float32, torch.bfloat16):
        assert check_norms(norms, dtype) == {}
        wrong = partial(torch.nn.utils.get_total_norm, norm_type=1.9)
        reasons = check_norms({**norms, "fused": wrong}, dtype)
        assert reasons == {"fused": "computes something else"}


def test_all_contestants_step_the_same_memory():
    _, everyone, optimizers = started()
    places = {}
    for who, optimizer in optimizers.items():
        averages = everyone[who].sequence.averages
        for index, param in enumerate(contestants.params_of(optimizer)):
            states = [state for state in optimizer.state[param].values() if state.dim() > 0]
            for at, tensor in enumerate((param, param.grad, *states)):
                key = averages, index, at, tensor.dtype
                places.setdefault(key, set()).add(tensor.data_ptr())
    assert all(len(found) == 1 for found in places.values())
    assert {dtype for *_, dtype in places} == {torch.float32, torch.bfloat16}
    assert len(places) == TINY.tensors * (4 + 2 + 5)


def test_every_sequence_clips_gradients_that_are_made_anew():
    groups, everyone, optimizers = started()
    gradients = sequences.Gradients(groups)
    before = [param.grad.clone() for group in groups for param in group["params"]]
    norm = fusedopt.get_total_norm(before).item()
    assert gradients.max_norm == pytest.approx(norm / 2)
    runs = sequences.runs_of(everyone, optimizers, gradients.max_norm)
    for (name, who), run in runs.items():
        for param in contestants.params_of(optimizers[name, who]):
            param.grad.mul_(7)
        gradients.renew()
        grads = contestants.gradients_of(optimizers[name, who])
        assert all(map(torch.equal, grads, before))
        run()
        left = fusedopt.get_total_norm(grads).item()
        if everyone[name, who].sequence.zeroes:
            assert left == 0
        elif who == OURS and name != BY_HAND.name:
            assert left == pytest.approx(norm)
            measured = optimizers[name, who].grad_norm.item()
            assert measured == pytest.approx(norm)
        else:
            assert left == pytest.approx(norm / 2)


@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda sequence: sequence.name)
def test_a_floor_changes_nothing_but_what_is_zeroed(sequence):
    _, _, optimizers = started([sequence])
    optimizer = optimizers[sequence.name, OURS]
    params = contestants.params_of(optimizer)
    kept = [t for param in params for t in (param, *optimizer.state[param].values())]
    before = [tensor.clone() for tensor in kept]
    grads = [grad.clone() for grad in contestants.gradients_of(optimizer)]
    contestants.floor(sequence, optimizer)()
    assert all(map(torch.equal, kept, before))
    for grad, old in zip(contestants.gradients_of(optimizer), grads, strict=True):
        assert not grad.any() if sequence.zeroes else torch.equal(grad, old)


def test_every_sequence_is_a_row_beside_torchs():
    with bars() as progress:
        rows = sequences.measure(TINY, SEQUENCES, CONDITIONS, progress)
    assert [row["sequence"] for row in rows] == [sequence.name for sequence in SEQUENCES]
    for row in rows:
        assert set(row["peers"]) == {OURS, TOUCH, "fused"}
        assert row["fastest_torch"] == "fused"
        assert row["share_of_touch"]["median"] > 0
        assert row["not_timed"] == {}
        # A round at each of five places in memory.
        assert sum(len(row["peers"][OURS][key]) for key in ("seconds", "left_out")) == 5
    by_torch = [row["peers"]["fused"]["seconds"] for row in rows]
    assert by_torch[0] == by_torch[1] == by_torch[2]
    assert len({tuple(seconds) for seconds in by_torch}) == 4
    # Parameter, gradient and states; the gradient once more for the norm.
    assert [row["ideal_bytes"] / TINY.elements for row in rows] == [32, 32, 24, 40, 32, 40]


def test_who_may_not_be_compared_is_a_note(monkeypatch):
    monkeypatch.setattr(sequences, "torchs", lambda *given: without(lambda calls: calls[1:]))
    with bars() as progress:
        (row,) = sequences.measure(TINY, [PLAIN], CONDITIONS, progress)
    assert row["not_timed"] == {"fused": "computes something else"}
    table = tables.all_tables({"cases": [], "parts": {"sequences": [row]}})["sequences"]
    assert table.rows[0][4:] == ["note", "-", "-"]
    assert table.notes == ["torch fused computes something else: tiny, clip, step"]


def test_the_norm_is_beside_reading(monkeypatch):
    for workload in (TINY, replace(TINY, dtype="bfloat16")):
        with bars() as progress:
            row = sequences.measure_norm(workload, CONDITIONS, progress)
        assert set(row["peers"]) == {OURS, TOUCH, "fused"}
        assert row["ideal_bytes"] == TINY.elements * (2 if workload.dtype else 4)


def test_whole_training_steps_go_on_clipping():
    with bars() as progress:
        row = sequences.measure_training(CONDITIONS, progress)
    assert set(row["peers"]) == {OURS, "for-loop", "foreach", "fused"}
    assert row["share_of_touch"] is None
    assert (row["tensors"], row["elements"]) == (6, 269_322)


def test_what_does_not_fit_into_memory_is_refused(monkeypatch):
    monkeypatch.setattr(sequences, "bytes_available", lambda device: 10)
    with bars() as progress, pytest.raises(LackOfMemoryError, match="sequences on tiny: needs"):
        sequences.measure(TINY, SEQUENCES, CONDITIONS, progress)


@pytest.mark.parametrize("quick", [True, False])
def test_a_quick_run_leaves_the_largest_out(quick, monkeypatch):
    seen = []
    monkeypatch.setattr(sequences, "measure", lambda of, *_: seen.append(of.name) or [])
    monkeypatch.setattr(sequences, "measure_norm", lambda of, *_: seen.append(of.name))
    monkeypatch.setattr(sequences, "measure_training", lambda *_: {})
    sequences.sequences(replace(CONDITIONS, quick=quick), None)
    everything = [*sequences.STEPPED, *sequences.NORMS]
    small = [name for name in everything if not name.startswith("gpt2")]
    assert seen == (small if quick else everything)


def test_a_run_has_a_table_changes_and_aims(monkeypatch, capsys):
    monkeypatch.setattr(sequences, "WORKLOADS", dict.fromkeys(("tiny", "norm"), TINY))
    monkeypatch.setattr(sequences, "STEPPED", ("tiny",))
    monkeypatch.setattr(sequences, "NORMS", ("norm",))
    monkeypatch.setattr(bench, "PARTS", {"sequences": sequences.sequences})
    aim = ("tiny", "clip, step")
    monkeypatch.setattr(targets, "RATIO_OF_SEQUENCES", {aim: 1000.0})
    result = bench.run(only=["sequences"], settings=MINIATURE, aims=True)
    shown = capsys.readouterr().out
    assert "tiny, clip, step" in shown
    table = tables.all_tables(result)["sequences"]
    assert [row[1] for row in table.rows] == [
        *(sequence.name for sequence in SEQUENCES), "norm", sequences.TRAINING.name,
    ]  # fmt: skip
    assert table.rows[-1][3] == "-"
    changes = compare.compare(result, json.loads(json.dumps(result)))
    assert {change.case for change in changes} >= {"tiny, clip, step", "tiny, norm"}
    rows = targets.targets([], result).rows
    assert [row[0] for row in rows] == [
        "tiny, clip, step", "norm's share of reading's speed, lowest of all",
    ]  # fmt: skip
    assert rows[0][1] == "1000"
    assert report.markdown(result, "sequences").count("\n| tiny | ") == len(SEQUENCES) + 1


def test_a_sequence_is_its_calls_in_their_order():
    seen = []
    calls = [partial(seen.append, name) for name in "abc"]
    contestant = Contestant(Sequence("s"), list, lambda optimizer, norm: calls)
    contestant.run_of(None, 1.0)()
    assert seen == ["a", "b", "c"]
    assert ours(BY_HAND).sequence.in_torch == ours(IN_16_BITS).sequence.in_torch == PLAIN.name
