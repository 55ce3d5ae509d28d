"""The command: searches the learning rates, draws, and writes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from fusedopt.names import find_name
from fusedopt.plotting.style import LIGHT, THEMES, Theme, save_themed, themed
from fusedopt.plotting.trajectories.drawing import FRAMES, draw_all, draw_frames, draw_one
from fusedopt.plotting.trajectories.search import CRITERION, OPTIMIZERS, RATES, search
from fusedopt.plotting.trajectories.surfaces import SURFACES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fusedopt.plotting.trajectories.drawing import Paths

Entry = TypeVar("Entry")

_FRAME_MS, _LAST_FRAME_MS = 80, 3000


def draw_trajectories(
    out: FilePath,
    surfaces: Sequence[str] = (),
    optimizers: Sequence[str] = (),
    steps: int = 200,
    each: bool = False,
    **options: Any,
) -> list[FilePath]:
    """Writes ``trajectories.json``, and ``.png`` and ``.gif`` in light and in dark, into a folder.

    Args:
        out: the folder, which is made.
        surfaces: names of :data:`SURFACES`; all if empty.
        optimizers: names of :data:`OPTIMIZERS`; all if empty.
        steps: steps of every optimizer, at least 1.
        each: also write ``path-<optimizer>-light.svg`` and ``-dark.svg``.
        options: of all optimizers; with ``ema_decay`` the paths are those of the averages.

    Returns:
        The files that were written. The same arguments give the same files.

    Raises:
        UnknownNameError: a surface or an optimizer that there is not.
        ValueError: an option that is out of bounds.
    """
    chosen_surfaces = _chosen(surfaces, SURFACES)
    chosen = _chosen(optimizers, OPTIMIZERS)
    out.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        total = len(chosen_surfaces) * len(chosen)
        bar = progress.add_task("searching learning rates", total=total)
        paths: dict[str, dict[str, Any]] = {name: {} for name in chosen_surfaces}
        for surface, runs in paths.items():
            for optimizer in chosen:
                runs[optimizer] = search(optimizer, SURFACES[surface], steps, **options)
                progress.advance(bar)
        files = [_write_rates(paths, steps, options, out / "trajectories.json")]
        files += _draw_still(paths, out)
        for theme in THEMES:
            with themed(theme):
                frames = progress.track(draw_frames(paths, theme), FRAMES, description="animating")
                files.append(_write_gif(list(frames), _themed_file(out, theme, "gif")))
        for optimizer in progress.track(list(chosen) if each else [], description="drawing each"):
            draw = partial(draw_one, paths, optimizer)
            files += save_themed(draw, out, f"path-{optimizer.lower()}")
    return files


def print_trajectories(*args: Any, **options: Any) -> None:
    """Calls :func:`draw_trajectories` and prints what it wrote."""
    for file in draw_trajectories(*args, **options):
        print(f"{file}  {file.stat().st_size / 1000:,.0f} kB")


def _chosen(names: Sequence[str], table: Mapping[str, Entry]) -> dict[str, Entry]:
    """The named entries in the order of the table; all, if none is named."""
    chosen = {find_name(name, table) for name in names}
    return {name: entry for name, entry in table.items() if name in chosen or not names}


def _write_rates(paths: Paths, steps: int, options: Mapping[str, Any], file: FilePath) -> FilePath:
    """What the search chose, and how."""
    found = {
        surface: {
            optimizer: {
                "lr": path.rate,
                "final_loss": float(f"{path.losses[-1]:.4g}"),
                "score": float(f"{path.score:.4g}"),
            }
            for optimizer, path in runs.items()
        }
        for surface, runs in paths.items()
    }
    asked_for = {"options": dict(options)} if options else {}
    report = {
        "steps": steps,
        **asked_for,
        "criterion": CRITERION,
        "rates": RATES,
        "surfaces": found,
    }
    file.write_text(json.dumps(report, indent=2) + "\n")
    return file


def _themed_file(out: FilePath, theme: Theme, suffix: str) -> FilePath:
    return out / f"trajectories{'' if theme is LIGHT else '-' + theme.name}.{suffix}"


def _draw_still(paths: Paths, out: FilePath) -> list[FilePath]:
    files = []
    for theme in THEMES:
        file = _themed_file(out, theme, "png")
        with themed(theme):
            draw_all(paths, theme).savefig(file, dpi=110)
        files.append(file)
    return files


def _write_gif(frames: Sequence[Any], file: FilePath) -> FilePath:
    durations = [_FRAME_MS] * (len(frames) - 1) + [_LAST_FRAME_MS]
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return file
