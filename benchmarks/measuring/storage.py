"""Steps of parameters and states that are stored in fewer bytes, beside torch's in float32."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusedopt.checking.verify import take_any_gradient

from ..contestants.contests import OURS, TOUCH, TRAINED
from ..contestants.floors import touch_memory_of
from ..contestants.others import OTHERS, Factory
from ..contestants.ways import (
    BASELINE,
    OFFLOADED,
    OVERWRITING,
    PLAIN,
    WAYS,
    Way,
    contestants,
    is_low_bit,
)
from ..workloads.tensors import IN_CACHE, OFFLOAD, OFFLOAD_QUICK, WORKLOADS, Workload
from .checks import Warm, check_stored, warm_up
from .describe import derive, describe_timing, moved_bytes, ratio_row, state_bytes, stored_bytes
from .measure import Conditions, Groups, LackOfMemoryError, bytes_available, make_groups
from .progress import Bars
from .scaling import shorter, torch_threads
from .shared_states import SharedStates
from .timing import Step, Timing, clock_of, estimate, interleave

# Of a workload in all formats at once, with everyone's states and what they have of their own.
_BYTES_PER_ELEMENT = 64

# A peer that takes so many times the baseline's time has rounds of its own, so that those of all
# others stay short beside the phases of the machine.
_SLOW = 5

# Creates the states; what is estimated before the rounds warms up the rest.
_WARM_UP = 1

Who = tuple[str, str]  # a way, and who steps it


def storage(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Every way on one tensor and on GPT-2, with all threads and with one, and in one's cache."""
    names = ("one-64m",) if conditions.quick else ("one-64m", "gpt2-124m")
    threads = sorted({1, torch.get_num_threads()})
    large = [
        row
        for name in names
        for row in measure(WORKLOADS[name], [*WAYS], threads, (), conditions, bars)
    ]
    alone = replace(conditions, peers=())
    return [*large, *measure(IN_CACHE, [*WAYS], [1], (), alone, bars)]


def offload(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """A float32 optimizer of a bfloat16 model: what is stepped where states are offloaded."""
    workload = OFFLOAD_QUICK if conditions.quick else OFFLOAD
    threads = [torch.get_num_threads()]
    return measure(workload, OFFLOADED, threads, ("deepspeed",), conditions, bars)


class Formats:
    """Parameters and gradients of a workload, in each dtype in one memory."""

    def __init__(self, workload: Workload) -> None:
        self._groups = make_groups(workload, torch.float32)
        self._cast: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def groups(self, way: Way, own_gradients: bool = False) -> Groups:
        """Parameter groups in a way's dtypes; the tensors are new, their memory is not.

        Args:
            way: one of ``WAYS``.
            own_gradients: copy the gradients, for a step that overwrites them.
        """
        groups: Groups = [
            {**group, "params": [self._parameter(param, way) for param in group["params"]]}
            for group in self._groups
        ]
        if own_gradients:
            for param in (param for group in groups for param in group["params"]):
                param.grad = param.grad.clone()
        return groups

    def _parameter(self, base: torch.Tensor, way: Way) -> torch.Tensor:
        assert base.grad is not None
        param = self._in(base, way.param).detach()
        take_any_gradient(param)
        param.grad = self._in(base.grad, way.grad)
        return param

    def _in(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if tensor.dtype == dtype:
            return tensor
        key = (id(tensor), dtype)  # of tensors that self._groups keeps
        if key not in self._cast:
            self._cast[key] = tensor.to(dtype)
        return self._cast[key]


@dataclass(frozen=True)
class Started:
    """Those who have taken some steps.

    Attributes:
        warm: by way and who; the floor of each way is one of them.
        reasons: why others have not, in each way.
    """

    warm: dict[Who, Warm]
    reasons: dict[str, dict[str, str]]


def measure(
    workload: Workload,
    ways: list[str] | tuple[str, ...],
    threads: list[int],
    yardsticks: tuple[str, ...],
    conditions: Conditions,
    bars: Bars,
) -> list[dict[str, Any]]:
    """Times every way on one workload, and in the same rounds torch's fused step in float32.

    Args:
        workload: what is stepped.
        ways: names in ``WAYS``.
        threads: numbers of threads; other packages are timed with the last of them only, because
            a step may have been compiled for it.
        yardsticks: peers with whose fastest way all ways are compared, too.
        conditions: settings and peers.
        bars: where progress is shown.

    Returns:
        A row for each way and number of threads; times in seconds per step.

    Raises:
        LackOfMemoryError: there is not the memory for all of them at once.
    """
    needed, there = workload.elements * _BYTES_PER_ELEMENT, bytes_available("cpu")
    if needed > there:
        raise LackOfMemoryError(workload.name, needed, there)
    gc.collect()
    bars.start(f"{workload.name}: creating")
    started = start(workload, contestants(ways, conditions.peers), bars)
    steps = {who: warm.optimizer.step for who, warm in started.warm.items()}
    slow = _slow(steps, conditions)
    rows = []
    for count in threads:
        left_out = slow if count == threads[-1] else [who for who in steps if who[1] in OTHERS]
        with torch_threads(count):
            bars.start(f"{workload.name}: {len(ways)} ways, threads: {count}")
            together = {who: step for who, step in steps.items() if who not in left_out}
            timings = _interleave(together, (PLAIN, TOUCH), conditions, bars)
            alone = {}
            for who in slow if count == threads[-1] else ():
                bars.start(f"{workload.name}: {who[1]}")
                alone[who] = _beside_ours(who, steps, conditions, bars)
        for way in ways:
            head = {**_size_of(workload), "way": way, "threads": count, "optimizer": TRAINED}
            rows.append({**head, **_row(way, timings, alone, started, yardsticks)})
    return rows


def start(workload: Workload, factories: dict[Who, Factory], bars: Bars) -> Started:
    """Optimizers that have taken some steps, in one memory for each format."""
    memory, shared = Formats(workload), SharedStates()
    warm: dict[Who, Warm] = {}
    reasons: dict[str, dict[str, str]] = check_stored(factories)
    spare: dict[tuple[int, int], torch.Tensor] = {}
    for (way, who), factory in factories.items():
        if who in reasons.get(way, {}):
            continue
        bars.start(f"{workload.name}: {way}, {who}")
        groups = memory.groups(WAYS[way], own_gradients=who in OVERWRITING)
        made = warm_up(who, factory, groups, _WARM_UP)
        if isinstance(made, str):
            reasons.setdefault(way, {})[who] = made
            continue
        warm[way, who] = replace(made, state_bytes=state_bytes(made.optimizer))
        shared.share(made.optimizer)
        if who == OURS:
            floor = touch_memory_of(made.optimizer, spare)
            floor.step()
            warm[way, TOUCH] = Warm(floor, 0.0)
    return Started(warm, reasons)


def _slow(steps: dict[Who, Step], conditions: Conditions) -> list[Who]:
    clock, measurement = clock_of("cpu"), conditions.settings.measurement
    most = _SLOW * estimate(steps[PLAIN, BASELINE], measurement, clock)
    others = [who for who in steps if who[1] in OTHERS]
    return [who for who in others if estimate(steps[who], measurement, clock) > most]


def _interleave(
    steps: dict[Who, Step], floor: Who, conditions: Conditions, bars: Bars
) -> dict[Who, Timing]:
    return interleave(steps, conditions.settings, bars.advance, floor=floor)


def _beside_ours(
    who: Who, steps: dict[Who, Step], conditions: Conditions, bars: Bars
) -> dict[Who, Timing]:
    """A slow peer in turns with this package's step of the same way, and its floor."""
    way, _ = who
    own = {each: steps[each] for each in ((way, OURS), (way, TOUCH), who)}
    return _interleave(own, (way, TOUCH), shorter(conditions), bars)


def _size_of(workload: Workload) -> dict[str, Any]:
    return {
        "workload": workload.name,
        "tensors": workload.tensors,
        "elements": workload.elements,
        "groups": len(workload.groups),
    }


def _row(
    way: str,
    timings: dict[Who, Timing],
    alone: dict[Who, dict[Who, Timing]],
    started: Started,
    yardsticks: tuple[str, ...],
) -> dict[str, Any]:
    ours = started.warm[way, OURS].optimizer
    own = {who: timing for (its_way, who), timing in timings.items() if its_way == way}
    slow = {who: timed for (its_way, who), timed in alone.items() if its_way == way}
    slow_timings = {who: timed[way, who] for who, timed in slow.items()}
    elements = sum(param.numel() for group in ours.param_groups for param in group["params"])
    beside_baseline = {**own, BASELINE: timings[PLAIN, BASELINE]}
    derived = derive(beside_baseline, moved_bytes(ours))
    ratios = {
        **{who: ratio_row(timing, own[OURS]) for who, timing in own.items()
           if who not in (OURS, TOUCH)},
        **{who: ratio_row(timed[way, who], timed[way, OURS]) for who, timed in slow.items()},
    }  # fmt: skip
    return {
        **derived,
        "bytes_per_parameter": stored_bytes(ours) / elements,
        "ratios": ratios,
        "yardsticks": {
            peer: ratio_row(fastest, own[OURS])
            for peer in yardsticks
            if (fastest := _fastest(peer, timings)) is not None
        },
        "peers": {
            who: {
                **describe_timing(timing),
                "first_step": started.warm[way, who].first_step,
                "state_bytes_per_parameter": started.warm[way, who].state_bytes / elements,
            }
            for who, timing in {**own, **slow_timings}.items()
        },
        "not_timed": started.reasons.get(way, {}),
        "low_bit": [who for who in ratios if is_low_bit(who)],
    }


def _fastest(peer: str, timings: dict[Who, Timing]) -> Timing | None:
    """A peer's timing in the way in which it is fastest, if it was timed in any."""
    of_peer = [timing for (_, who), timing in timings.items() if who == peer]
    return min(of_peer, key=lambda timing: sorted(timing.seconds)[len(timing.seconds) // 2],
               default=None)  # fmt: skip
