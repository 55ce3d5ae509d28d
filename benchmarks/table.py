"""Prints the table of a result: ``python -m fusedopt.benchmarks.table RESULT.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .report import markdown


def main(arguments: list[str]) -> None:
    """Prints the Markdown table of every file of results that is named."""
    if not arguments:
        sys.exit("usage: python -m fusedopt.benchmarks.table RESULT.json...")
    print("\n".join(markdown(json.loads(Path(name).read_text())) for name in arguments), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
