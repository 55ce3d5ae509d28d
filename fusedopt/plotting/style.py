"""How plots look: in light and in dark, in colours that colour-blind readers tell apart.

Colours are those of Okabe and Ito, Color Universal Design, 2008, the black one aside; in the order
in which neighbours differ most.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from cycler import cycler
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Theme:
    """The colours of a background and of what is drawn on it other than data."""

    name: str
    background: str
    foreground: str
    grid: str


LIGHT = Theme("light", "#FFFFFF", "#24292F", "#D8DEE4")
DARK = Theme("dark", "#1E2129", "#E6E8EB", "#3D444D")
THEMES = (LIGHT, DARK)


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Figures that are drawn in this context have the theme's colours, and text that is text."""
    settings: Any = {
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "text.color": theme.foreground,
        "axes.labelcolor": theme.foreground,
        "axes.edgecolor": theme.foreground,
        "xtick.color": theme.foreground,
        "ytick.color": theme.foreground,
        "grid.color": theme.grid,
        "legend.facecolor": theme.background,
        "legend.edgecolor": theme.grid,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 11,
        "svg.fonttype": "path",  # the same on machines without the font
        "svg.hashsalt": "fusedopt",  # the same file for the same figure
    }
    with mpl.rc_context(settings):
        yield


def save_themed(draw: Callable[[Theme], Figure], folder: Path, name: str) -> list[Path]:
    """Draws a figure in every theme, into ``<folder>/<name>-light.svg`` and ``-dark.svg``."""
    paths = []
    for theme in THEMES:
        with themed(theme):
            figure = draw(theme)
            path = folder / f"{name}-{theme.name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
        paths.append(path)
    return paths
