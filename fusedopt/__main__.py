"""The command ``fusedopt``, also ``python -m fusedopt``."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, which needs the extra ``cli``."""
    try:
        from fusedopt.cli import app
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "typer"}:
            raise
        sys.exit(f"The command line needs the package {error.name}: pip install 'fusedopt[cli]'")
    app(prog_name="fusedopt")


if __name__ == "__main__":
    main()
