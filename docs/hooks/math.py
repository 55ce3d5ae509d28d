"""LaTeX becomes MathML when the site is built, so that no page has to load a renderer."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

# Accents have glyphs of their own; those of the keyboard, which latex2mathml takes, hang too low.
_ACCENTS = {
    "<mo>&#x0005E;</mo></mover>": '<mo stretchy="false">&#x002C6;</mo></mover>',
    '<mo stretchy="false">&#x0007E;</mo></mover>': '<mo stretchy="false">&#x002DC;</mo></mover>',
}
# What pymdownx.arithmatex makes of $...$ and $$...$$ in its generic form.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL
)


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    mathml = convert(html.unescape(match["latex"]).strip(), display=display)
    for low, high in _ACCENTS.items():
        mathml = mathml.replace(low, high)
    return mathml


def on_page_content(content: str, **_: Any) -> str:
    """Replaces the formulas of a page."""
    return _FORMULA.sub(_mathml, content)
