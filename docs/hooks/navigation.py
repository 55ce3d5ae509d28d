"""The tabs name the sections, so a page that is alone in its section needs no list of pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page


def on_page_context(context: dict[str, Any], page: Page, **_: Any) -> dict[str, Any]:
    """Hides the list of pages beside a page without neighbours."""
    neighbours = page.parent.children if page.parent else [page]
    if len(neighbours) == 1:
        page.meta["hide"] = sorted({*page.meta.get("hide", ()), "navigation"})
    return context
