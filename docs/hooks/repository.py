"""Pages that live in the root of the repository, and links that lead out of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?!\w+:|#)[^)#]+)(?P<anchor>#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, with their links as seen from docs/."""
    for source, page in PAGES.items():
        text = _LINK.sub(_from_docs, (ROOT / source).read_text())
        files.append(File.generated(config, page, content=text))
    return files


def _from_docs(link: re.Match[str]) -> str:
    target = PAGES.get(link["target"], posixpath.relpath(link["target"], "docs"))
    return f"[{link['text']}]({target}{link['anchor'] or ''})"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Files of the repository that are not pages: linked where it is known, else only named."""

    def resolved(link: re.Match[str]) -> str:
        path = posixpath.normpath(
            posixpath.join("docs", posixpath.dirname(page.file.src_uri), link["target"])
        )
        if path.startswith("docs/"):
            return link[0]
        if not (ROOT / path).exists():
            raise PluginError(f"{page.file.src_uri}: {link['target']} is not in the repository")
        if config.repo_url:
            return f"[{link['text']}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return link["text"] if "`" in link["text"] else f"`{path}`"

    return _LINK.sub(resolved, markdown)
