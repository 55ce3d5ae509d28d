"""The tables of a result, as rows of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import case_sheets, part_sheets
from .sheet import Sheet, is_gpu
from .targets import targets


def all_sheets(result: dict[str, Any]) -> dict[str, Sheet]:
    """Every table for which the result has rows, by name."""
    cases = dict.fromkeys(("steps", "details", "targets"), result["cases"])
    rows = {**cases, **result.get("parts", {})}
    made = {name: make(rows[name], result) for name, make in _SHEETS.items() if rows.get(name)}
    return {name: sheet for name, sheet in made.items() if sheet.rows}


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


_SHEETS: dict[str, Callable[[list[dict[str, Any]], dict[str, Any]], Sheet]] = {
    "steps": case_sheets.steps,
    "details": case_sheets.details,
    "tensors": part_sheets.family,
    "elements": part_sheets.family,
    "threads": part_sheets.threads,
    "training": part_sheets.training,
    "costs": part_sheets.costs,
    "targets": targets,
}
