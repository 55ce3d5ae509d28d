"""Two progress bars: what has been measured of all, and the rounds of what is being measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Bars:
    """A context in which the bars are on the terminal's standard error."""

    def __init__(self, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self._all = self._progress.add_task("benchmark", total=total)
        self._rounds = self._progress.add_task("")

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, description: str) -> None:
        """Names what is being measured; how many rounds it has is not known yet."""
        self._progress.reset(self._rounds, description=description, total=None)

    def advance(self, done: int, total: int) -> None:
        """Shows the rounds done and their total."""
        self._progress.update(self._rounds, completed=done, total=total)

    def finish(self) -> None:
        """Counts what was being measured as done."""
        self._progress.advance(self._all)

    def grow(self, more: int) -> None:
        """Adds to what there is to measure."""
        total: Any = self._progress.tasks[0].total
        self._progress.update(self._all, total=total + more)
