"""How steps are timed: in turns, in one process, so that whatever slows the machine slows all."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy
import torch

Step = Callable[[], object]
Who = TypeVar("Who", bound=Hashable)  # a name, or several that together say who is timed


@dataclass(frozen=True)
class Settings:
    """How much is measured.

    Attributes:
        warmup: untimed steps ahead of everything; the first one creates the states.
        measurement: seconds that one measurement takes at least.
        budget: seconds that the rounds of one case should take together.
        min_rounds, max_rounds: bounds of the number of rounds, whatever the budget.
    """

    warmup: int = 3
    measurement: float = 2e-3
    budget: float = 6.0
    min_rounds: int = 7
    max_rounds: int = 201

    def shared_by(self, parts: int) -> Settings:
        """The settings of each of several parts that together measure as much."""
        return replace(
            self,
            budget=self.budget / parts,
            min_rounds=math.ceil(self.min_rounds / parts),
            max_rounds=math.ceil(self.max_rounds / parts),
        )


QUICK = Settings(warmup=1, budget=1.5, min_rounds=3, max_rounds=51)

# One measurement has to be long beside the wait at its end, which takes some microseconds.
GPU = Settings(measurement=1e-2, budget=3.0, min_rounds=5, max_rounds=101)
GPU_QUICK = Settings(measurement=5e-3, budget=0.5, min_rounds=3, max_rounds=21)


def settings_for(device: str, quick: bool) -> Settings:
    """How much is measured on a device."""
    if device == "cuda":
        return GPU_QUICK if quick else GPU
    return QUICK if quick else Settings()


@dataclass
class Timing:
    """Seconds per step, one number per round, each over ``steps`` steps in a row.

    Attributes:
        steps: steps of one measurement.
        seconds: by the host's clock.
        stream_seconds: between events on the GPU's stream; empty on the CPU.
        left_out: seconds of rounds in which the machine was in another phase.
    """

    steps: int
    seconds: list[float] = field(default_factory=list)
    stream_seconds: list[float] = field(default_factory=list)
    left_out: list[float] = field(default_factory=list)

    def leave_out(self, rounds: Sequence[bool]) -> None:
        """Moves the rounds that are marked to ``left_out``."""
        self.left_out += itertools.compress(self.seconds, rounds)
        kept = [not left_out for left_out in rounds]
        self.seconds = list(itertools.compress(self.seconds, kept))
        self.stream_seconds = list(itertools.compress(self.stream_seconds, kept))


@dataclass(frozen=True)
class Summary:
    """Median and quartiles."""

    median: float
    lower_quartile: float
    upper_quartile: float


def summarize(values: list[float]) -> Summary:
    """Median and quartiles, in the unit of the values."""
    lower, median, upper = numpy.quantile(values, [0.25, 0.5, 0.75])
    return Summary(float(median), float(lower), float(upper))


def ratio(numerator: Timing, denominator: Timing) -> Summary:
    """Quotient of two peers' times, taken round by round: not that of their medians."""
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    return summarize([above / below for above, below in pairs])


class HostClock:
    """Times steps that are done when they return."""

    def measure(self, step: Step, timing: Timing) -> None:
        """Adds the seconds per step, over ``timing.steps`` steps in a row, to ``timing``."""
        start = time.perf_counter()
        for _ in range(timing.steps):
            step()
        timing.seconds.append((time.perf_counter() - start) / timing.steps)


class SingleStepClock:
    """Times single steps, each after something else, which uses the caches or makes gradients.

    Args:
        between: what runs ahead of every step, untimed.
    """

    def __init__(self, between: Step) -> None:
        self._between = between

    def measure(self, step: Step, timing: Timing) -> None:
        """Adds the seconds per step, over ``timing.steps`` steps, to ``timing``."""
        seconds = 0.0
        for _ in range(timing.steps):
            self._between()
            start = time.perf_counter()
            step()
            seconds += time.perf_counter() - start
        timing.seconds.append(seconds / timing.steps)


class GpuClock:
    """Times steps that go on, on the current GPU's current stream, after they have returned.

    The host queues all steps of a measurement and waits once, for the last of them, so a step's
    time is the longer of the host's and the GPU's, as in a training loop.
    """

    def __init__(self) -> None:
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def measure(self, step: Step, timing: Timing) -> None:
        """Adds the seconds per step, over ``timing.steps`` steps in a row, to ``timing``."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        self._start.record()
        for _ in range(timing.steps):
            step()
        self._end.record()
        torch.cuda.synchronize()
        timing.seconds.append((time.perf_counter() - start) / timing.steps)
        milliseconds = self._start.elapsed_time(self._end)
        timing.stream_seconds.append(milliseconds * 1e-3 / timing.steps)


Clock = HostClock | SingleStepClock | GpuClock


def clock_of(device: str) -> Clock:
    """The clock for steps on a device."""
    return GpuClock() if device == "cuda" else HostClock()


def estimate(step: Step, measurement: float, clock: Clock) -> float:
    """Seconds per step, roughly: a short step, which varies more, is taken several times."""
    timing = Timing(1)
    clock.measure(step, timing)
    if timing.seconds[-1] < measurement:
        timing.steps = math.ceil(measurement / timing.seconds[-1])
        clock.measure(step, timing)
    return timing.seconds[-1]


def interleave(
    steps: dict[Who, Step],
    settings: Settings,
    advance: Callable[[int, int], None],
    clock: Clock | None = None,
    floor: Who | None = None,
) -> dict[Who, Timing]:
    """Times every peer once per round, in an order that rotates from round to round.

    Args:
        steps: one step of each peer, warmed up.
        settings: how much is measured.
        advance: called after every round with the rounds done and their total.
        clock: of the device that the steps run on; the host's by default.
        floor: the peer whose time says in which phase the machine is. Rounds in which it is further
            than a tenth from its median are left out of everybody's timing. If they are more than
            half, as many are measured again, and once more.

    Returns:
        The timing of each peer; equal positions belong to one round.
    """
    clock = clock or HostClock()
    estimates = {name: estimate(step, settings.measurement, clock) for name, step in steps.items()}
    timings = {
        name: Timing(max(1, math.ceil(settings.measurement / seconds)))
        for name, seconds in estimates.items()
    }
    round_seconds = sum(estimates[name] * timings[name].steps for name in steps)
    rounds = int(settings.budget / round_seconds)
    rounds = min(max(rounds, settings.min_rounds), settings.max_rounds)
    with _no_garbage_collection():
        for _ in range(1 if floor is None else _MOST_ATTEMPTS):
            _measure_rounds(rounds, steps, timings, clock, advance)
            if floor is None or not _most(_in_another_phase(timings[floor].seconds)):
                break
    if floor is not None:
        other_phase = _in_another_phase(timings[floor].seconds)
        for timing in timings.values():
            timing.leave_out(other_phase)
    return timings


def _measure_rounds(
    rounds: int,
    steps: dict[Who, Step],
    timings: dict[Who, Timing],
    clock: Clock,
    advance: Callable[[int, int], None],
) -> None:
    names = list(steps)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            timing = timings[name]
            if timing.steps > 1:
                steps[name]()  # takes the caches back from the peer before it
            clock.measure(steps[name], timing)
        advance(index + 1, rounds)


# How far, as a fraction of its median, the floor moves within one phase of a machine.
_SAME_PHASE = 0.1
_MOST_ATTEMPTS = 3


def _in_another_phase(seconds: Sequence[float]) -> list[bool]:
    median = float(numpy.median(seconds))
    return [abs(value / median - 1) > _SAME_PHASE for value in seconds]


def _most(rounds: Sequence[bool]) -> bool:
    return 2 * sum(rounds) > len(rounds)


def extend(timings: dict[Who, Timing], further: dict[Who, Timing]) -> None:
    """Adds the rounds of further timings of the same peers."""
    for name, timing in further.items():
        into = timings.setdefault(name, Timing(timing.steps))
        into.seconds += timing.seconds
        into.stream_seconds += timing.stream_seconds
        into.left_out += timing.left_out


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps the collector from running in the middle of somebody's measurement."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
