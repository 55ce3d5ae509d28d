"""LaTeX becomes MathML when the site is built, so that no page has to load a renderer."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# What pymdownx.arithmatex makes of $...$ and $$...$$ in its generic form.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return convert(html.unescape(match["latex"]).strip(), display=display)


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the formulas of a page."""
    return _FORMULA.sub(_mathml, content)
