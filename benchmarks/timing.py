"""How steps are timed: in turns, in one process, so that whatever slows the machine slows all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy

Step = Callable[[], object]


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
    budget: float = 20.0
    min_rounds: int = 9
    max_rounds: int = 201


QUICK = Settings(warmup=1, budget=1.5, min_rounds=3, max_rounds=51)


@dataclass
class Timing:
    """Seconds a step, one number a round, each over ``steps`` steps in a row."""

    steps: int
    seconds: list[float] = field(default_factory=list)


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
    """Quotient of two peers' times, taken round by round."""
    pairs = zip(numerator.seconds, denominator.seconds, strict=True)
    return summarize([above / below for above, below in pairs])


def measure(step: Step, steps: int) -> float:
    """Seconds a step, over ``steps`` steps in a row."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - start) / steps


def estimate(step: Step, measurement: float) -> float:
    """Seconds a step, roughly: a short step, which varies more, is taken several times."""
    seconds = measure(step, 1)
    return measure(step, math.ceil(measurement / seconds)) if seconds < measurement else seconds


def interleave(
    steps: dict[str, Step], settings: Settings, advance: Callable[[int, int], None]
) -> dict[str, Timing]:
    """Times every peer once a round, in an order that rotates from round to round.

    Args:
        steps: one step of each peer, warmed up.
        settings: how much is measured.
        advance: called after every round with the rounds done and their total.

    Returns:
        The timing of each peer; equal positions belong to one round.
    """
    estimates = {name: estimate(step, settings.measurement) for name, step in steps.items()}
    timings = {
        name: Timing(max(1, math.ceil(settings.measurement / seconds)))
        for name, seconds in estimates.items()
    }
    round_seconds = sum(estimates[name] * timings[name].steps for name in steps)
    rounds = int(settings.budget / round_seconds)
    rounds = min(max(rounds, settings.min_rounds), settings.max_rounds)
    names = list(steps)
    with _no_garbage_collection():
        for index in range(rounds):
            first = index % len(names)
            for name in names[first:] + names[:first]:
                timing = timings[name]
                if timing.steps > 1:
                    steps[name]()  # takes the caches back from the peer before it
                timing.seconds.append(measure(steps[name], timing.steps))
            advance(index + 1, rounds)
    return timings


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps the collector from running in the middle of somebody's measurement."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
