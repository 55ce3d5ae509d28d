"""Names that users write: found in any case, or refused with a list of those that there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class UnknownNameError(ValueError):
    """A name that stands for nothing."""


def find_name(written: str, names: Iterable[str]) -> str:
    """The name that is spelt like this one but for the case of its letters.

    Raises:
        UnknownNameError: there is none.
    """
    table = {name.lower(): name for name in names}
    if written.lower() not in table:
        raise UnknownNameError(f"{written!r} is not one of {', '.join(table.values())}")
    return table[written.lower()]
