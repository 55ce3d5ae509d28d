"""The pictures of a result, each in light and in dark."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fusedopt.plotting.style import COLOURS, MARKERS, Theme, save_themed

from ..contestants.contests import MAIN, OURS, TOUCH, TRAINED
from .table import format_count, is_gpu, three_digits
from .targets import IN_NO_CACHE

_LABELS = {
    OURS: "fusedopt",
    "for-loop": "torch, for-loop",
    "foreach": "torch, foreach",
    "fused": "torch, fused",
    "torch": "torch, default",
}
# A time is said to be below the memory's limit from this ratio on: nearer ones may be noise.
CLEARLY_BELOW = 1.1
# One colour and one marker each, in every picture; a default is what the for-loop is on the CPU.
_ORDER = {OURS: 0, "for-loop": 1, "torch": 1, "fused": 2, "foreach": 3}


def draw_all(result: dict[str, Any], folder: Path) -> list[Path]:
    """Draws the pictures for which the result has rows.

    Returns:
        The files written: ``benchmark-<picture>-<theme>.svg``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"workloads": result["cases"], **result.get("parts", {})}
    paths = []
    for name, draw in _PICTURES.items():
        if rows.get(name):

            def figure(theme: Theme, draw: _Draw = draw, name: str = name) -> Figure:
                return draw(rows[name], result, theme)

            paths += save_themed(figure, folder, f"benchmark-{name}")
    return paths


def _tensors(cases: list[dict[str, Any]], result: dict[str, Any], theme: Theme) -> Figure:
    sizes = sorted({case["elements"] // case["tensors"] for case in cases})
    figure, panels = plt.subplots(
        1, len(sizes), figsize=(10, 4.4), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, size in zip(panels[0], sizes, strict=True):
        of_size = [case for case in cases if case["elements"] == size * case["tensors"]]
        _curves(panel, of_size, "tensors", memory_rate(result), theme)
        panel.set_title(f"tensors of {size:,} elements", loc="left")
        panel.set_xlabel("number of tensors")
    panels[0][0].set_ylabel("time of a step")
    return _titled(figure, f"A step of {MAIN}, {_where(result)}")


def _elements(cases: list[dict[str, Any]], result: dict[str, Any], theme: Theme) -> Figure:
    figure, panel = plt.subplots(figsize=(8, 4.8), layout="constrained")
    _curves(panel, cases, "elements", memory_rate(result), theme)
    panel.set_xlabel("elements of one tensor")
    panel.set_ylabel("time of a step")
    return _titled(figure, f"A step of {MAIN} on one tensor, {_where(result)}")


def _curves(
    panel: Axes, cases: list[dict[str, Any]], key: str, rate: float | None, theme: Theme
) -> None:
    """Time over a number, a line for each who was timed, and what the memory's rate allows."""
    names = [name for name in _ORDER if any(name in case["peers"] for case in cases)]
    ends: list[tuple[float, str, dict[str, Any]]] = []
    for name in names:
        timed = [case for case in cases if name in case["peers"]]
        xs = [case[key] for case in timed]
        ys = [case["peers"][name]["median"] for case in timed]
        style: dict[str, Any] = {
            "color": COLOURS[_ORDER[name]],
            "linewidth": 2.5 if name == OURS else 1.5,
        }
        panel.plot(xs, ys, marker=MARKERS[_ORDER[name]], markersize=4, **style)
        ends.append((ys[-1], _LABELS[name], style))
    if rate is not None:
        xs = [case[key] for case in cases]
        ys = [case["ideal_bytes"] / rate for case in cases]
        style = {"color": theme.foreground, "linestyle": "--", "linewidth": 1}
        panel.plot(xs, ys, **style)
        ends.append((ys[-1], "memory's limit", style))
        ours = {case[key]: case["peers"][OURS]["median"] for case in cases if OURS in case["peers"]}
        _say_what_is_cached(panel, ours, dict(zip(xs, ys, strict=True)), theme)
    panel.set_xscale("log")
    panel.set_yscale("log")
    low = min(case["peers"][name]["median"] for case in cases for name in case["peers"])
    panel.set_ylim(bottom=low / 2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(_time))
    panel.yaxis.set_major_locator(LogLocator(numticks=12))
    panel.yaxis.set_minor_formatter(NullFormatter())
    _label_ends(panel, cases[-1][key], ends, theme)


def _say_what_is_cached(
    panel: Axes, times: dict[float, float], limits: dict[float, float], theme: Theme
) -> None:
    """Where times are farthest below what the memory allows, says why: caches are faster."""
    ratios = {x: time / limits[x] for x, time in times.items() if time < limits[x] / CLEARLY_BELOW}
    if ratios:
        x = min(ratios, key=lambda each: ratios[each])
        panel.annotate(
            "in the caches", (x, times[x]), (12, -18), textcoords="offset points", fontsize=9,
            color=theme.foreground, va="center",
            arrowprops={"arrowstyle": "-", "color": theme.foreground, "linewidth": 0.8},
        )  # fmt: skip


def _label_ends(
    panel: Axes, x: float, ends: list[tuple[float, str, dict[str, Any]]], theme: Theme
) -> None:
    """Names lines at their right ends, moved apart where they would overlap.

    The words have the colour of the text, which is easier to read than that of the line.
    """
    apart = 0.06  # of the height
    height = 0.0
    for y, text, style in sorted(ends, key=lambda end: end[0]):
        point = panel.transData.transform((x, y))
        height = max(float(panel.transAxes.inverted().transform(point)[1]), height + apart)
        place: Any = {"transform": panel.transAxes, "clip_on": False}
        panel.plot([1.02, 1.05], [height, height], **style, **place)
        panel.text(1.07, height, text, color=theme.foreground, va="center", **place)


def _workloads(cases: list[dict[str, Any]], result: dict[str, Any], theme: Theme) -> Figure:
    compared = [case for case in cases if case["speedup"]]
    compared.sort(key=lambda case: case["speedup"]["median"])
    figure, panel = plt.subplots(figsize=(8, 1.4 + 0.27 * len(compared)), layout="constrained")
    rows = range(len(compared))
    for row, case in zip(rows, compared, strict=True):
        speedup = case["speedup"]
        panel.plot([1, speedup["median"]], [row, row], color=theme.grid, linewidth=3, zorder=1)
        panel.plot(
            [speedup["lower_quartile"], speedup["upper_quartile"]], [row, row],
            color=COLOURS[0], linewidth=1.5,
        )  # fmt: skip
        panel.plot(speedup["median"], row, color=COLOURS[0], marker=MARKERS[0], markersize=7)
        label = three_digits(speedup["median"]) + (" (tie)" if case["tie"] else "")
        panel.annotate(
            label, (max(speedup["upper_quartile"], 1), row), (8, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    panel.axvline(1, color=theme.foreground, linewidth=1)
    panel.set_yticks(rows, [f"{case['workload']}, {case['optimizer']}" for case in compared])
    panel.set_xscale("log")
    panel.set_xlim(
        0.9 * min(1, *(case["speedup"]["lower_quartile"] for case in compared)),
        1.6 * max(case["speedup"]["upper_quartile"] for case in compared),
    )
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("time of torch's fastest over fusedopt's, with quartiles; 1: equally fast")
    return _titled(figure, f"How many times as fast as torch's fastest, {_where(result)}")


def _training(rows: list[dict[str, Any]], result: dict[str, Any], theme: Theme) -> Figure:
    names = [name for name in ("torch", "foreach", "fused", OURS) if name in rows[0]["peers"]]
    figure, panel = plt.subplots(figsize=(8, 1.2 + 1.3 * len(rows)), layout="constrained")
    height = 0.8 / len(names)
    for row, case in enumerate(rows):
        base = case["peers"]["torch"]["median"]
        for position, name in enumerate(names):
            median = case["peers"][name]["median"]
            where = row + (position - (len(names) - 1) / 2) * height
            panel.barh(where, 100 * median / base, 0.9 * height, color=COLOURS[_ORDER[name]])
            panel.annotate(
                f"{_LABELS[name]}: {three_digits(median * 1e3)} ms", (100 * median / base, where),
                (5, 0), textcoords="offset points", va="center", fontsize=9,
            )  # fmt: skip
    panel.set_yticks(range(len(rows)), [row["model"] for row in rows])
    panel.invert_yaxis()
    panel.set_xlim(0, 145)
    panel.set_xticks(range(0, 101, 25))
    panel.grid(axis="y", visible=False)
    panel.set_xlabel("time of a training step, % of that with torch's default optimizer")
    return _titled(figure, f"Whole training steps with {TRAINED}, {_where(result)}")


def _stored(rows: list[dict[str, Any]], result: dict[str, Any], theme: Theme) -> Figure:
    """Times of every way with all threads, as a part of torch's fused step in float32."""
    most = max(row["threads"] for row in rows)
    names = [*dict.fromkeys(row["workload"] for row in rows if row["threads"] == most)]
    ways = [*dict.fromkeys(row["way"] for row in rows)]
    figure, panels = plt.subplots(
        1, len(names), figsize=(4 + 4 * len(names), 1.4 + 0.32 * len(ways)), sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for panel, name in zip(panels[0], names, strict=True):
        for row in rows:
            if (row["workload"], row["threads"]) == (name, most):
                _stored_bar(panel, ways.index(row["way"]), row, theme)
        panel.axvline(100, color=theme.foreground, linewidth=1)
        panel.set_title(name, loc="left")
        panel.set_xlim(left=0)
        panel.grid(axis="y", visible=False)
        panel.set_xlabel("% of the time of torch's fused step in float32")
    panels[0][0].set_yticks(range(len(ways)), ways)
    panels[0][0].invert_yaxis()
    title = f"A step of {TRAINED}, stored in fewer bytes; |: moving the bytes alone"
    return _titled(figure, f"{title}, {_where(result)}")


def _stored_bar(panel: Axes, place: int, row: dict[str, Any], theme: Theme) -> None:
    share = 100 / row["speedup"]["median"]
    floor = share * row["share_of_touch"]["median"]
    panel.barh(place, share, 0.7, color=COLOURS[0])
    panel.plot([floor, floor], [place - 0.35, place + 0.35], color=theme.foreground, linewidth=2)
    panel.annotate(
        f"{share:.0f}%", (max(share, floor), place), (5, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip


def memory_rate(result: dict[str, Any]) -> float | None:
    """Bytes a second that the memory gives: the touch kernel's, on what no cache holds.

    The median over the cases of the optimizer that the pictures show, since the rate depends on how
    many of the bytes are written. None where nothing that large was measured.
    """
    cases = [*result["cases"], *result.get("parts", {}).get("elements", ())]
    rates = [
        case["ideal_bytes"] / case["peers"][TOUCH]["median"]
        for case in cases
        if case["optimizer"] == MAIN and case["ideal_bytes"] >= IN_NO_CACHE
    ]
    return statistics.median(rates) if rates else None


def _titled(figure: Figure, title: str) -> Figure:
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    name = machine["gpu"]["name"] if is_gpu(result) else machine["processor"]
    threads = "" if is_gpu(result) else f", threads: {result['threads']}"
    return f"{name}{threads}, {result['settings']['dtype']}"


def _time(seconds: float, _: Any = None) -> str:
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.999 * size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds * 1e9:g} ns"


_Draw = Callable[[list[dict[str, Any]], dict[str, Any], Theme], Figure]
_PICTURES: dict[str, _Draw] = {
    "tensors": _tensors,
    "elements": _elements,
    "workloads": _workloads,
    "training": _training,
    "storage": _stored,
    "offload": _stored,
}
