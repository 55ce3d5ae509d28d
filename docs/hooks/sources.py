"""Source code in pages, taken from the files when the site is built.

``{{ rule adam adam }}`` shows the function ``adam`` of fusedopt/reference/adam.py beside the
functions of csrc/rules/adam.h that carry out the same formula, and ``{{ picture path-adam The path
of Adam }}`` a picture in the version for light and the one for dark. So does a ``<picture>`` of
both, which is what other sites' renderers of Markdown understand.
"""

from __future__ import annotations

import ast
import re
import textwrap
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
_DIRECTIVE = re.compile(r"^\{\{ (?P<kind>\w+) (?P<name>\S+) (?P<rest>.+) \}\}$", re.MULTILINE)
_HTML_PICTURE = re.compile(
    r'<picture>\s*<source [^>]*srcset="(?P<dark>[^"]+)"[^>]*>\s*(?P<img><img [^>]*>)\s*</picture>'
)
_CPP_FUNCTION = re.compile(
    r"^(?P<indent> *)template <[^\n]*>\n(?P=indent)FUSEDOPT_FN [^(]*?\b"
    r"(?P<name>derive|update|derive_shared|apply_shared)\(.*?^(?P=indent)\}\n",
    re.MULTILINE | re.DOTALL,
)


def reference_function(name: str, path: str) -> str:
    """A function of a Python file, without its docstring, which the page says at more length."""
    text = (ROOT / path).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            lines = text.splitlines()
            body = lines[node.lineno - 1 : node.body[0].lineno - 1]
            return "\n".join(body + lines[node.body[1].lineno - 1 : node.end_lineno])
    raise PluginError(f"{path} has no function {name}")


def native_functions(path: str) -> str:
    """The functions of a header that do arithmetic: once a step, and once an element."""
    matches = _CPP_FUNCTION.finditer((ROOT / path).read_text())
    functions = [textwrap.dedent(match[0]) for match in matches]
    if not functions:
        raise PluginError(f"{path} has no function that does arithmetic")
    return "\n".join(functions).rstrip()


def _rule(function: str, stem: str) -> str:
    reference, header = f"fusedopt/reference/{stem}.py", f"csrc/rules/{stem}.h"
    python = f'```python title="{reference}"\n{reference_function(function, reference)}\n```'
    cpp = f'```cpp title="{header}"\n{native_functions(header)}\n```'
    return f'<div class="grid side-by-side" markdown>\n\n{python}\n\n{cpp}\n\n</div>'


def _themed(light: str, dark: str, alt: str) -> str:
    return f"![{alt}]({light}#only-light)\n![{alt}]({dark}#only-dark)"


def _picture(name: str, alt: str, page: Page) -> str:
    up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
    path = f"{up}pictures/{name}"
    return _themed(f"{path}-light.svg", f"{path}-dark.svg", alt)


def _from_html(picture: re.Match[str]) -> str:
    attributes = dict(re.findall(r'(src|alt)="([^"]*)"', picture["img"]))
    return _themed(attributes["src"], picture["dark"], " ".join(attributes["alt"].split()))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Carries out the directives of a page."""

    def expanded(directive: re.Match[str]) -> str:
        kind, name, rest = directive["kind"], directive["name"], directive["rest"]
        if kind == "rule":
            return _rule(name, rest)
        if kind == "picture":
            return _picture(name, rest, page)
        raise PluginError(f"{page.file.src_uri}: no directive is called {kind}")

    return _HTML_PICTURE.sub(_from_html, _DIRECTIVE.sub(expanded, markdown))
