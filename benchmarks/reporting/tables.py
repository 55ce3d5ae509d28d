"""The tables of a result, as rows of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import case_tables, part_tables, storage_tables
from .table import Table, is_gpu
from .targets import targets

AIMS = "targets"

# Made for documents and maintainers, and not shown after a run.
ASKED_FOR = ("overview", "ways", AIMS)


def all_tables(result: dict[str, Any]) -> dict[str, Table]:
    """Every table for which the result has rows, by name."""
    cases = dict.fromkeys(("overview", "steps", "cold", "details", AIMS), result["cases"])
    parts = result.get("parts", {})
    rows = {**cases, **parts, "ways": parts.get("storage")}
    # Aims are held against parts, too.
    has_rows = [name for name in _TABLES if rows.get(name) or name == AIMS]
    made = {name: _TABLES[name](rows[name], result) for name in has_rows}
    return {name: table for name, table in made.items() if table.rows}


def conditions(result: dict[str, Any]) -> str:
    """Where and with what the result was measured, in one line."""
    versions = result["versions"]
    return ", ".join(
        (
            *(_gpu(result) if is_gpu(result) else _processor(result)),
            result["settings"]["dtype"],
            f"torch {versions['torch']}",
            versions["compiler"],
            *(f"{name} {version}" for name, version in versions.get("peers", {}).items()),
            *(f"{name}={value}" for name, value in result["environment"].items()),
        )
    )


def skipped(result: dict[str, Any]) -> list[str]:
    """A line for every case that was not run, and why."""
    return [f"Skipped: {line}" for line in result.get("skipped", ())]


def _processor(result: dict[str, Any]) -> tuple[str, ...]:
    host = result["machine"]
    return (
        f"{host['processor']}",
        f"{host['cores']} cores",
        f"{host['memory_bytes'] / 2**30:.0f} GiB",
        f"threads: {result['threads']}",
        result["isa"],
    )


def _gpu(result: dict[str, Any]) -> tuple[str, ...]:
    host, gpu = result["machine"], result["machine"]["gpu"]
    return (
        f"{gpu['name']}",
        f"{gpu['memory_bytes'] / 2**30:.0f} GiB",
        f"driver {gpu['driver']}",
        f"CUDA {gpu['cuda']}",
        f"host {host['processor']}",
    )


_TABLES: dict[str, Callable[[list[dict[str, Any]], dict[str, Any]], Table]] = {
    "overview": case_tables.overview,
    "steps": case_tables.steps,
    "cold": case_tables.cold,
    "details": case_tables.details,
    "tensors": part_tables.family,
    "elements": part_tables.family,
    "threads": part_tables.threads,
    "training": part_tables.training,
    "sequences": part_tables.sequences,
    "costs": part_tables.costs,
    "storage": storage_tables.storage,
    "ways": storage_tables.ways,
    "offload": storage_tables.storage,
    "memory": storage_tables.memory,
    AIMS: targets,
}
