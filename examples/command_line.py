"""Arguments that several examples take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

MaxGradNorm = Annotated[float | None, typer.Option(min=0, help="Clip gradients to this norm.")]
L1 = Annotated[float | None, typer.Option(min=0, help="The factor of an L1 penalty.")]
EmaDecay = Annotated[
    float | None, typer.Option(min=0, max=1, help="Evaluate averages with it; 1: the plain mean.")
]


def known(names: list[str] | None, table: Iterable[str], option: str = "") -> list[str]:
    """The names, all of the table if there are none.

    Raises:
        typer.BadParameter: one is not in the table; it names the option that has it.
    """
    all_names = list(table)
    for name in names or ():
        if name not in all_names:
            where = f"{option}: " if option else ""
            raise typer.BadParameter(f"{where}{name} is not one of {', '.join(all_names)}")
    return names or all_names
