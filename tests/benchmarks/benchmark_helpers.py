"""What the tests of the benchmark share: a workload and a run that take a moment."""

from __future__ import annotations

from contextlib import AbstractContextManager

from fusedopt.benchmarks.measuring.measure import Conditions
from fusedopt.benchmarks.measuring.progress import Bars
from fusedopt.benchmarks.measuring.timing import Settings
from fusedopt.benchmarks.workloads.tensors import Workload

MINIATURE = Settings(warmup=1, measurement=1e-5, budget=0.0, min_rounds=3, max_rounds=3)
CONDITIONS = Conditions(MINIATURE)
TINY = Workload("tiny", [[(17,), (5, 3)], [(33,)]])


def no_advance(done: int, total: int) -> None:
    """In place of a progress bar."""


def bars() -> AbstractContextManager[Bars]:
    """Progress bars, which a test needs and nobody watches."""
    return Bars(1)
