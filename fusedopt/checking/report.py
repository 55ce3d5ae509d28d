"""Everything that can be verified on this machine, as tables: ``fusedopt verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from fusedopt import _native
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.norms import verify_norms
from fusedopt.checking.stored import ON_CPU, STORAGES, verify_storage
from fusedopt.checking.verify import Result, default_thread_counts, targets, verify_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Jobs = Sequence[Callable[[], list[Result]]]


def verify(progress: Callable[[int, int], None] | None = None) -> list[Result]:
    """Verifies every rule in every dtype on every instruction set of this CPU, and on the GPU.

    Args:
        progress: called with the number of cases done and their total.

    Returns:
        One row for each rule, dtype and target, over all of the rule's options.
    """
    return _merged(_dtype_jobs(), progress)


def _dtype_jobs() -> Jobs:
    return [
        lambda case=case, dtype=dtype: verify_case(  # type: ignore[misc]
            case, dtype, targets(), default_thread_counts()
        )
        for case in CASES
        for dtype in DTYPES
    ]


def _storage_jobs() -> Jobs:
    """Those of fewer bytes and of what follows a step, with the fastest instruction set first."""
    isas = _native.available_isas()
    where = [*isas[::-1], *targets()[len(isas) :]]
    return [
        lambda case=case, storage=storage: verify_storage(  # type: ignore[misc]
            case, storage, where, default_thread_counts()
        )
        for storage in (*STORAGES, *ON_CPU)
        for case in CASES
    ]


def _norm_jobs() -> Jobs:
    return [
        lambda dtype=dtype: verify_norms(  # type: ignore[misc]
            dtype, _native.available_isas(), default_thread_counts()
        )
        for dtype in DTYPES
    ]


def _merged(jobs: Jobs, progress: Callable[[int, int], None] | None) -> list[Result]:
    table: dict[tuple[str, str, str], Result] = {}
    for done, job in enumerate(jobs):
        if progress:
            progress(done, len(jobs))
        for result in job():
            key = (result.rule, result.dtype, result.target)
            table.setdefault(key, Result(*key)).merge(result)
    if progress:
        progress(len(jobs), len(jobs))
    return list(table.values())


def _over_rules(results: Iterable[Result]) -> list[Result]:
    """One row for each storage and target, over all rules."""
    table: dict[tuple[str, str], Result] = {}
    for result in results:
        key = (result.dtype, result.target)
        table.setdefault(key, Result("all", *key)).merge(result)
    return list(table.values())


def _print_table(console: Console, title: str, results: Sequence[Result], has_ulp: bool) -> None:
    table = Table(title=title)
    for name in ("rule", "stored as", "target"):
        table.add_column(name)
    for name in ("elements", "mismatches", *(["ULP"] if has_ulp else [])):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(
            result.rule,
            result.dtype,
            result.target,
            f"{result.elements:,}",
            f"{result.mismatches:,}",
            *([f"{result.ulp:.2f}"] if has_ulp else []),
            style="bold red" if result.mismatches else None,
        )
    console.print(table)
    for result in results:
        if result.mismatches:
            console.print(
                f"first mismatch of {result.rule}, {result.dtype}, {result.target}: "
                f"{result.first_mismatch}"
            )


def print_verification() -> int:
    """Runs everything with a progress bar and prints its tables.

    Returns:
        The number of mismatches.
    """
    console = Console()
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("verifying against the NumPy reference", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        by_dtype = verify(progress)
        bar.update(task, description="verifying what is stored in fewer bytes")
        by_storage = _merged(_storage_jobs(), progress)
        bar.update(task, description="verifying norms")
        norms = _merged(_norm_jobs(), progress)
    title = "Native kernels against the NumPy reference"
    _print_table(console, title, by_dtype, has_ulp=True)
    _print_table(console, "The same, in fewer bytes", _over_rules(by_storage), has_ulp=False)
    _print_table(console, "What is measured ahead of a step", norms, has_ulp=False)
    results = [*by_dtype, *by_storage, *norms]
    mismatches = sum(result.mismatches for result in results)
    console.print(
        f"{len(results)} combinations, threads {', '.join(map(str, default_thread_counts()))}: "
        f"{mismatches:,} mismatches"
    )
    return mismatches
