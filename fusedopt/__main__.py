"""The command ``fusedopt``, also ``python -m fusedopt``."""

from __future__ import annotations

import sys

EXTRAS = {"rich": "cli", "typer": "cli", "matplotlib": "plots"}


def main() -> None:
    """Runs the command line; says which extra brings a package that a command lacks."""
    try:
        from fusedopt.cli import app

        app(prog_name="fusedopt")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        sys.exit(f"This command needs the package {error.name}: pip install 'fusedopt[{extra}]'")


if __name__ == "__main__":
    main()
