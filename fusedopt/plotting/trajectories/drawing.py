"""Pictures of paths over surfaces: of all optimizers, of one among the others, and moving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from PIL import Image

from fusedopt.plotting.style import COLOURS, MARKERS, Theme
from fusedopt.plotting.trajectories.search import FLOOR, OPTIMIZERS
from fusedopt.plotting.trajectories.surfaces import SURFACES, Surface

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from fusedopt.plotting.trajectories.search import Path

    Runs = Mapping[str, Path]  # by optimizer
    Paths = Mapping[str, Runs]  # by surface

KEY = "Ring: start. Star: minimum. Hourglass: saddle."
FRAMES = 90

# The marks of points, with shapes that no optimizer has; what is open shows the lines below it.
POINT_MARKS: dict[str, dict[str, Any]] = {
    "start": {"marker": "o", "ms": 12, "mfc": "none", "mew": 2},
    "minimum": {"marker": "*", "ms": 15},
    "saddle": {"marker": Outline([(-1, -1), (1, -1), (-1, 1), (1, 1), (-1, -1)]), "ms": 11},
}

# What the picture of one optimizer shows, of the surfaces that there are.
_PORTRAIT = ("valley", "saddle", "beale")

# Yellow is hard to see on a light background: the foreground's colour, first, takes its place.
_COLOURS = (None, *COLOURS[:-1])
_LEVELS = 11
_GRID = 120  # points of a surface in each direction
_MARKS = 20  # of an optimizer along its path or its losses


@dataclass(frozen=True)
class Style:
    """How an optimizer is drawn wherever it appears."""

    colour: str
    marker: str
    line: Any


def style_of(optimizer: str, theme: Theme) -> Style:
    """Colour, marker and line of an optimizer.

    After the last colour they come again from the last on, dashed.
    """
    again, place = divmod(list(OPTIMIZERS).index(optimizer), len(_COLOURS))
    if again:
        place = len(_COLOURS) - 1 - place
    return Style(_COLOURS[place] or theme.foreground, MARKERS[place], (0, (4, 2)) if again else "-")


def draw_surface(axes: Axes, surface: Surface, theme: Theme) -> None:
    """Contours at equal distances of the loss's logarithm; start, minima and saddles."""
    (left, right), (bottom, top) = surface.limits
    x, y = np.meshgrid(np.linspace(left, right, _GRID), np.linspace(bottom, top, _GRID))
    loss = surface.loss(x, y) - surface.lowest
    levels = np.geomspace(loss.max() / 1e4, loss.max(), _LEVELS)
    shades = LinearSegmentedColormap.from_list("shades", [theme.grid, theme.background])
    axes.contourf(x, y, np.log(np.maximum(loss, levels[0])), np.log(levels), cmap=shades, zorder=0)
    axes.contour(x, y, loss, levels, colors=theme.foreground, linewidths=0.5, alpha=0.25, zorder=0)
    axes.set_rasterization_zorder(0.5)  # as vectors they are most of a file
    for point in surface.minima:
        _mark(axes, point, "minimum", theme)
    for point in surface.saddles:
        _mark(axes, point, "saddle", theme)
    _mark(axes, surface.start, "start", theme)
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="x", ylabel="y")
    axes.grid(False)


def _mark(axes: Axes, point: tuple[float, float], kind: str, theme: Theme) -> None:
    """A point of a surface. A closed mark has an edge in the background's colour."""
    look = POINT_MARKS[kind]
    edge = theme.foreground if "mfc" in look else theme.background
    axes.plot(*point, **{"color": theme.foreground, "mec": edge, "zorder": 4, **look})


def mark_every(path: Path) -> int:
    """How many steps lie between two markers, of a path as of its losses."""
    return max(1, (len(path.points) - 1) // _MARKS)


def draw_path(axes: Axes, path: Path, style: Style, width: float = 1.6) -> None:
    """A line through all iterates, with markers on some."""
    axes.plot(
        *path.points.T, ls=style.line, lw=width, color=style.colour,
        marker=style.marker, ms=3.5 * width, markevery=mark_every(path),
    )  # fmt: skip


def draw_losses(axes: Axes, runs: Runs, theme: Theme) -> None:
    """Loss against steps, with the learning rates in the legend."""
    for name, path in runs.items():
        style = style_of(name, theme)
        axes.plot(
            np.maximum(path.losses, FLOOR / 100), ls=style.line, lw=1.6, color=style.colour,
            marker=style.marker, ms=4.5, markevery=mark_every(path),
            label=f"{name}, {path.rate:g}",
        )  # fmt: skip
    axes.set(yscale="log", xlabel="steps", ylabel="loss above the lowest")
    axes.set_ylim(bottom=FLOOR)
    axes.legend(
        title="optimizer, learning rate",
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
    )


def draw_all(paths: Paths, theme: Theme) -> Figure:
    """One row a surface: the paths, and the loss against steps."""
    figure = Figure(figsize=(13, 4.6 * len(paths)), layout="constrained")
    rows = figure.subplots(len(paths), 2, squeeze=False, width_ratios=(1.25, 1))
    for (left, right), (name, runs) in zip(rows, paths.items(), strict=True):
        surface = SURFACES[name]
        draw_surface(left, surface, theme)
        left.set_title(f"{surface.title}\n{surface.formula}")
        for optimizer, path in runs.items():
            draw_path(left, path, style_of(optimizer, theme))
        draw_losses(right, runs, theme)
    between = mark_every(path)  # the same for all
    interval = "every step" if between == 1 else f"every {between} steps"
    figure.supxlabel(f"{KEY} A marker {interval}.", fontsize=11)
    return figure


def draw_one(paths: Paths, optimizer: str, theme: Theme) -> Figure:
    """One optimizer's paths over a few surfaces, among the others', which are faint."""
    names = [name for name in _PORTRAIT if name in paths] or list(paths)
    figure = Figure(figsize=(4 * len(names), 3.4), layout="constrained")
    others = Style(theme.foreground + "50", "", "-")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        surface, runs = SURFACES[name], paths[name]
        draw_surface(axes, surface, theme)
        for other, path in runs.items():
            if other != optimizer:
                draw_path(axes, path, others, width=0.8)
        draw_path(axes, runs[optimizer], style_of(optimizer, theme), width=2)
        axes.set_title(f"{surface.title}\nlearning rate {runs[optimizer].rate:g}", fontsize=11)
    return figure


def draw_frames(paths: Paths, theme: Theme) -> Iterator[Image.Image]:
    """The paths as they grow, slowly at first: :data:`FRAMES` images of one palette."""
    figure = Figure(dpi=80, layout="constrained")
    moving, clock = _stage(figure, paths, theme)
    last_step = len(moving[0].path.points) - 1
    canvas: Any = FigureCanvasAgg(figure)  # its methods have no types
    canvas.draw()
    empty = canvas.copy_from_bbox(figure.bbox)

    def frame(progress: float) -> Image.Image:
        step = round(last_step * progress**1.7)
        canvas.restore_region(empty)
        for each in moving:
            each.draw(step)
        clock.set_text(f"step {step}")
        clock.axes.draw_artist(clock)
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")

    palette = frame(1.0).quantize(256)
    for progress in np.linspace(0.0, 1.0, FRAMES):
        yield frame(progress).quantize(palette=palette, dither=Image.Dither.NONE)


@dataclass(frozen=True)
class _Moving:
    """A path that is drawn up to a step, with a marker where it has come."""

    axes: Axes
    path: Path
    line: Line2D
    point: Line2D

    def draw(self, step: int) -> None:
        self.line.set_data(*self.path.points[: step + 1].T)
        self.point.set_data(*self.path.points[step : step + 1].T)
        self.axes.draw_artist(self.line)
        self.axes.draw_artist(self.point)


def _stage(figure: Figure, paths: Paths, theme: Theme) -> tuple[list[_Moving], Any]:
    """The surfaces and a legend; returns what moves, and the text that tells the step."""
    columns = min(3, len(paths) + 1)
    rows = math.ceil((len(paths) + 1) / columns)
    figure.set_size_inches(4 * columns, 3.6 * rows)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    moving = []
    for axes, (name, runs) in zip(cells, paths.items(), strict=False):
        draw_surface(axes, SURFACES[name], theme)
        axes.set(title=SURFACES[name].title, xticks=[], yticks=[])
        for optimizer, path in runs.items():
            style = style_of(optimizer, theme)
            [line] = axes.plot([], ls=style.line, lw=1.5, color=style.colour, animated=True)
            [point] = axes.plot([], style.marker, ms=8, color=style.colour, animated=True)
            moving.append(_Moving(axes, path, line, point))
    for axes in cells[len(paths) :]:
        axes.axis("off")
    legend = cells[len(paths)]
    for optimizer in next(iter(paths.values())):
        style = style_of(optimizer, theme)
        legend.plot([], ls=style.line, color=style.colour, marker=style.marker, label=optimizer)
    legend.legend(loc="center", frameon=False, title=KEY.replace(". ", ".\n"))
    clock = legend.text(
        0.5, 1, "", ha="center", va="top", transform=legend.transAxes, animated=True
    )
    return moving, clock
