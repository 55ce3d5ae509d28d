"""How steps are timed: in turns, in one phase of the machine, on one set of states."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmark_helpers import TINY, no_advance
from fusedopt.benchmarks.contestants.contests import CONTESTS, OURS
from fusedopt.benchmarks.contestants.floors import Copy
from fusedopt.benchmarks.measuring import measure
from fusedopt.benchmarks.measuring.describe import describe_timing
from fusedopt.benchmarks.measuring.measure import make_groups
from fusedopt.benchmarks.measuring.shared_states import share_states
from fusedopt.benchmarks.measuring.timing import (
    HostClock,
    Settings,
    SingleStepClock,
    Summary,
    Timing,
    extend,
    interleave,
    ratio,
)
from fusedopt.benchmarks.reporting.case_tables import is_unsettled


def test_rounds_are_interleaved_and_their_order_rotates():
    calls = []
    steps = {name: partial(calls.append, name) for name in "abc"}
    settings = Settings(measurement=0.0, budget=0.0, min_rounds=4, max_rounds=4)
    timings = interleave(steps, settings, lambda *_: None)
    assert "".join(calls[3:]) == "abc" + "bca" + "cab" + "abc"
    assert all(len(timing.seconds) == 4 for timing in timings.values())


def stepping_clock(seconds):
    """A clock that says what each peer takes in each round."""

    class Clock(HostClock):
        def measure(self, step, timing):
            timing.seconds.append(next(seconds[step]))

    return Clock()


def test_rounds_in_another_phase_of_the_machine_are_left_out():
    steps = {"floor": "floor", "ours": "ours"}  # a step is only a name here
    floor = [1.0, 1.0, 1.05, 2.0, 0.95, 1.0]
    clock = stepping_clock({"floor": iter(floor), "ours": iter([9, 1, 2, 3, 4, 5])})
    settings = Settings(measurement=0.0, budget=0.0, min_rounds=5, max_rounds=5)
    timings = interleave(steps, settings, no_advance, clock, floor="floor")
    assert timings["ours"] == Timing(1, [1, 2, 4, 5], left_out=[3])
    assert timings["floor"].left_out == [2.0]
    assert not is_unsettled(describe_timing(timings["floor"]))


def test_a_machine_that_does_not_settle_is_measured_longer_and_marked():
    moving = [1.2**n for n in range(100)]
    steps = {"floor": "floor"}
    settings = Settings(measurement=0.0, budget=0.0, min_rounds=5, max_rounds=5)
    timings = interleave(
        steps, settings, no_advance, stepping_clock({"floor": iter(moving)}), floor="floor"
    )
    floor = timings["floor"]
    assert len(floor.seconds) + len(floor.left_out) == 3 * 5
    assert is_unsettled(describe_timing(floor))


def test_places_of_different_speed_are_no_phases():
    timings = {}
    for speed in (1.0, 2.0, 4.0):
        extend(timings, {"floor": Timing(1, [speed] * 5, left_out=[3 * speed])})
    assert not is_unsettled(describe_timing(timings["floor"]))


def test_a_single_step_follows_something_else():
    calls = []
    timing = Timing(3)
    SingleStepClock(lambda: calls.append("between")).measure(lambda: calls.append("step"), timing)
    assert calls == ["between", "step"] * 3
    assert len(timing.seconds) == 1


def optimizers_with_shared_states(name, dtype):
    groups = make_groups(TINY, dtype)
    started, raised = measure.start_all(CONTESTS[name].peers(), groups, 2)
    assert not raised
    return {who: warm.optimizer for who, warm in started.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONTESTS)
def test_all_peers_step_one_set_of_states(name, dtype):
    def addresses(optimizer):
        return [
            value.data_ptr()
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.dim() > 0
        ]

    optimizers = optimizers_with_shared_states(name, dtype)
    expected = addresses(optimizers[OURS])
    assert len(expected) == 3 * CONTESTS[name].states
    assert all(addresses(optimizer) == expected for optimizer in optimizers.values())
    for optimizer in optimizers.values():
        optimizer.step()
    assert all(addresses(optimizer) == expected for optimizer in optimizers.values())


def test_states_of_another_number_or_dtype_are_not_shared():
    param = torch.zeros(8)
    param.grad = torch.ones(8)
    adam, sgd = torch.optim.Adam([param]), torch.optim.SGD([param], momentum=0.9)
    for optimizer in (adam, sgd):
        optimizer.step()
    assert not share_states(adam, sgd)
    assert not share_states(adam, Copy([{"params": [param]}], 2))
    sgd.state[param]["momentum_buffer"] = sgd.state[param]["momentum_buffer"].double()
    assert not share_states(torch_sgd(param), sgd)


def torch_sgd(param):
    """An SGD with momentum that has taken a step."""
    optimizer = torch.optim.SGD([param], momentum=0.9)
    optimizer.step()
    return optimizer


def test_ratios_are_taken_round_by_round():
    theirs, ours = Timing(1, [2.0, 30.0, 400.0]), Timing(1, [1.0, 10.0, 100.0])
    assert ratio(theirs, ours) == Summary(3.0, 2.5, 3.5)
