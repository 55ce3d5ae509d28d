"""Docstrings keep Sphinx's markup, which editors show; the site's pages are Markdown."""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

from griffe import Extension

if TYPE_CHECKING:
    from griffe import Module, Object

_CODE = re.compile(r"^\.\. code-block:: (\w+)\n\n((?:    [^\n]*\n|\n)+)", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth):`~?([\w.]+)`")


def markdown_of(docstring: str, owner: Object) -> str:
    """A docstring in Markdown; a name without dots is looked up where it stands."""

    def link(role: re.Match[str]) -> str:
        name = role[1]
        return f"[`{name}`][{name if '.' in name else owner.resolve(name)}]"

    def fence(block: re.Match[str]) -> str:
        return f"```{block[1]}\n{textwrap.dedent(block[2]).strip()}\n```\n\n"

    return _ROLE.sub(link, _CODE.sub(fence, docstring + "\n"))


class DocstringsInMarkdown(Extension):
    """What mkdocstrings calls for every object that it has read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Converts the docstring of a module, class or function."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = markdown_of(obj.docstring.value, obj)


class ReferenceAsImported(Extension):
    """``fusedopt.reference`` takes its functions from its files when it is imported."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Moves the functions to where users find them."""
        reference = pkg["reference"]
        for module in list(reference.modules.values()):
            for name, function in list(module.functions.items()):
                is_public = name == module.name or name in reference.members
                if is_public and not function.is_alias:
                    reference.members.pop(name)
                    reference.imports.pop(name, None)
                    reference.set_member(name, function)
