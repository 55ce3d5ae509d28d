"""The commands of ``fusedopt``: their options and nothing else."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Optimizer steps for PyTorch.")


@app.command()
def info() -> None:
    """Print what a bug report needs."""
    from fusedopt.info import print_info

    print_info()


@app.command()
def verify() -> None:
    """Compare every kernel with the NumPy reference, as integers; exit status 1 on a mismatch."""
    from fusedopt.verify import print_verification

    raise typer.Exit(code=1 if print_verification() else 0)
