"""Blocks of code in the documents, and how scripts among them are run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """A block of code. One with a title, such as the name of a file, has a test of its own."""

    language: str
    title: str
    text: str


def blocks_of(document: Path, language: str | None = None) -> list[Block]:
    blocks = []
    for token in MarkdownIt().parse(document.read_text()):
        if token.type == "fence":
            title = re.search(r'title="([^"]*)"', token.info)
            name = token.info.split(maxsplit=1)[0] if token.info else ""
            blocks.append(Block(name, title[1] if title else "", token.content))
    return [block for block in blocks if language in (None, block.language)]


def file_of(document: Path, title: str) -> str:
    (block,) = (block for block in blocks_of(document) if block.title == title)
    return block.text


def torchrun(script: str, folder: Path, **environment: str) -> str:
    """What a script prints in two processes.

    Raises:
        AssertionError: it fails.
    """
    path = folder / "script.py"
    # torch's threads sometimes abort a process as its interpreter ends, with torch.optim, too.
    path.write_text(f"import os\nimport sys\n{script}\nsys.stdout.flush()\nos._exit(0)\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--nproc-per-node", "2", path],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
