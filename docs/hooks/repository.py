"""Pages that live in the root of the repository, and links that lead out of the site.

The repository's address is ``Repository`` below ``[project.urls]`` in pyproject.toml. While it is
missing, files that are not pages are only named, and nothing links to the repository. MkDocs's own
``repo_url`` is left empty: the theme would make browsers ask another host for stars and releases.
"""

from __future__ import annotations

import posixpath
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
_ADDRESS = re.compile(r'^Repository = "(?P<address>[^"]+)"', re.MULTILINE)
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?!\w+:|#)[^)#]+)(?P<anchor>#[^)]*)?\)")


def address() -> str:
    """Where the repository is; empty if that is not known."""
    found = _ADDRESS.search((ROOT / "pyproject.toml").read_text())
    return found["address"].rstrip("/") if found else ""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Links to the repository at the foot of each page."""
    if address():
        link = {"icon": "material/source-repository", "link": address(), "name": "Repository"}
        config.extra["social"] = [link]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, with their links as seen from docs/."""
    for source, page in PAGES.items():
        text = _LINK.sub(
            partial(_from_docs, posixpath.dirname(source)), (ROOT / source).read_text()
        )
        files.append(File.generated(config, page, content=text))
    return files


def _from_docs(folder: str, link: re.Match[str]) -> str:
    """A link of a page in a folder of the repository, as seen from docs/."""
    path = posixpath.normpath(posixpath.join(folder, link["target"]))
    target = PAGES.get(path, posixpath.relpath(path, "docs"))
    return f"[{link['text']}]({target}{link['anchor'] or ''})"


def on_pre_page(page: Page, **_: Any) -> Page:
    """Links to where a page can be edited."""
    if address():
        sources = {shown: source for source, shown in PAGES.items()}
        source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
        page.edit_url = f"{address()}/edit/main/{source}"
    return page


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Files of the repository that are not pages: linked where it is known, else only named."""

    def resolved(link: re.Match[str]) -> str:
        path = posixpath.normpath(
            posixpath.join("docs", posixpath.dirname(page.file.src_uri), link["target"])
        )
        if path in PAGES:
            page_path = posixpath.relpath(PAGES[path], posixpath.dirname(page.file.src_uri))
            return f"[{link['text']}]({page_path}{link['anchor'] or ''})"
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {link['target']} is not in the repository")
        if address():
            return f"[{link['text']}]({address()}/blob/main/{path})"
        return link["text"] if "`" in link["text"] else f"`{path}`"

    return _LINK.sub(resolved, markdown)
