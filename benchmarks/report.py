"""How a result is shown: a table on the terminal, a table in Markdown, a file of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_TORCH = ("for-loop", "foreach", "fused")


def is_gpu(result: dict[str, Any]) -> bool:
    """Whether the result was measured on a GPU."""
    return "gpu" in result["machine"]


def columns(result: dict[str, Any]) -> tuple[str, ...]:
    """The titles of the table."""
    floors = ("touch", "copy") if is_gpu(result) else ("touch",)
    return ("workload", "optimizer", "fusedopt", "GB/s", *floors, *_TORCH, "ratio")


def legend(result: dict[str, Any]) -> str:
    """What the columns say."""
    copy = "copy: time of a copy within the GPU's memory that moves as many, over fusedopt's. "
    return (
        "Median time of a step; for-loop, foreach and fused are torch's. "
        "GB/s: bytes that the step has to move, over fusedopt's time. "
        "touch: time of a kernel that only moves them, over fusedopt's. "
        + (copy if is_gpu(result) else "")
        + "ratio: time of torch's fastest over fusedopt's."
    )


def format_seconds(seconds: float) -> str:
    """Three digits and a unit: us, ms or s."""
    if seconds < 999.5e-6:
        return f"{_three_digits(seconds * 1e6)} us"
    if seconds < 999.5e-3:
        return f"{_three_digits(seconds * 1e3)} ms"
    return f"{_three_digits(seconds)} s"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def cells(case: dict[str, Any]) -> list[str]:
    """One row of the table."""
    ours = case["peers"]["fusedopt"]["median"]
    return [
        case["workload"],
        case["optimizer"],
        format_seconds(ours),
        _three_digits(case["bytes_per_second"] / 1e9),
        *(_percent(case[floor]) for floor in ("share_of_touch", "share_of_copy") if floor in case),
        *(_peer_cell(case, name) for name in _TORCH),
        _speedup_cell(case),
    ]


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['median']:.0f}%"


def _peer_cell(case: dict[str, Any], name: str) -> str:
    if name in case["peers"]:
        return format_seconds(case["peers"][name]["median"])
    return "note" if name in case["not_timed"] else "-"


def _speedup_cell(case: dict[str, Any]) -> str:
    if case["speedup"] is None:
        return "-"
    return _three_digits(case["speedup"]["median"]) + (" tie" if case["tie"] else "")


def not_timed(result: dict[str, Any]) -> list[str]:
    """A line for every peer that was not timed, and why."""
    return [
        f"{case['workload']}, {case['optimizer']}: torch {name} {reason}"
        for case in result["cases"]
        for name, reason in case["not_timed"].items()
    ]


def conditions(result: dict[str, Any]) -> str:
    """Where and with what the result was measured, in one line."""
    versions = result["versions"]
    return ", ".join(
        (
            *(_gpu(result) if is_gpu(result) else _processor(result)),
            result["settings"]["dtype"],
            f"torch {versions['torch']}",
            versions["compiler"],
            *(f"{name}={value}" for name, value in result["environment"].items()),
        )
    )


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


def show(result: dict[str, Any]) -> None:
    """Prints the result as a table."""
    console = Console()
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for position, column in enumerate(columns(result)):
        table.add_column(column, justify="left" if position < 2 else "right", no_wrap=True)
    for case in result["cases"]:
        table.add_row(*cells(case))
    console.print(table)
    for line in (*not_timed(result), legend(result), conditions(result)):
        console.print(line, markup=False, highlight=False)


def markdown(result: dict[str, Any]) -> str:
    """The result as a table in Markdown, under the line that says where it comes from."""
    titles = columns(result)
    rules = ["---" if position < 2 else "---:" for position in range(len(titles))]
    rows = [titles, rules, *(cells(case) for case in result["cases"])]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "".join(f"- {line}\n" for line in not_timed(result))
    parts = (conditions(result) + ":", table, notes.strip(), legend(result))
    return "\n\n".join(filter(None, parts)) + "\n"


def save(result: dict[str, Any], path: Path) -> None:
    """Writes the result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
