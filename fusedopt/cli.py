"""The commands of ``fusedopt``: their options and nothing else."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

app = typer.Typer(no_args_is_help=True, add_completion=False)


def _print_version(asked_for: bool) -> None:
    if asked_for:
        typer.echo(f"fusedopt {version('fusedopt')}")
        raise typer.Exit


@app.callback()
def common(
    _version: Annotated[
        bool,
        Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Optimizer steps for PyTorch."""


@app.command()
def info() -> None:
    """Print what a bug report needs."""
    from fusedopt.info import print_info

    print_info()


@app.command()
def verify() -> None:
    """Compare every kernel with the NumPy reference, as integers; exit status 1 on a mismatch."""
    from fusedopt.checking.verify import print_verification

    raise typer.Exit(code=1 if print_verification() else 0)


@app.command()
def bench(
    quick: Annotated[bool, Option("--quick", help="About a minute on two cores.")] = False,
    only: Annotated[
        list[str] | None,
        Option(help="A workload, or tensors, elements, threads, training, costs; repeat for more."),
    ] = None,
    optimizer: Annotated[list[str] | None, Option(help="An optimizer; repeat for more.")] = None,
    peers: Annotated[
        list[str] | None,
        Option(help="Who is timed beside fusedopt: for-loop, deepspeed, all; repeat for more."),
    ] = None,
    threads: Annotated[int | None, Option(min=1, help="Threads of both sides.")] = None,
    dtype: Annotated[str, Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    json: Annotated[
        Path | None, Option(help="Write every measurement to this file or into this folder.")
    ] = None,
    plot: Annotated[Path | None, Option(help="Draw pictures into this folder.")] = None,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Time a step beside torch's implementations and beside a kernel that only moves memory."""
    from fusedopt.benchmarks.run import UnknownNameError, run

    try:
        run(
            quick=quick,
            only=only or (),
            optimizers=optimizer or (),
            peers=peers or (),
            threads=threads,
            dtype=dtype,
            json=json,
            plot=plot,
            device=device,
        )
    except UnknownNameError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def trajectories(
    out: Annotated[Path, Option(file_okay=False, help="Write into this folder.")] = Path(
        "trajectories"
    ),
    only: Annotated[list[str] | None, Option(help="A surface; repeat for more.")] = None,
    optimizer: Annotated[list[str] | None, Option(help="An optimizer; repeat for more.")] = None,
    steps: Annotated[int, Option(min=1, help="Steps of every optimizer.")] = 200,
    each: Annotated[bool, Option("--each", help="Also a picture of each optimizer.")] = False,
) -> None:
    """Draw every optimizer's path over loss surfaces, with learning rates that a search chose."""
    from fusedopt.plotting.trajectories.command import print_trajectories

    print_trajectories(out, only or (), optimizer or (), steps, each)


@app.command()
def compare(
    before: Annotated[Path, Argument(help="A file that bench --json has written.")],
    after: Annotated[Path, Argument(help="A later one.")],
    threshold: Annotated[
        float, Option(min=0, help="How much slower is a regression, as a fraction.")
    ] = 0.05,
    force: Annotated[bool, Option("--force", help="Also across machines and settings.")] = False,
) -> None:
    """Compare two results of bench; exit status 1 on a regression."""
    from fusedopt.benchmarks.reporting.compare import DifferentConditionsError, print_comparison

    try:
        raise typer.Exit(code=1 if print_comparison(before, after, threshold, force) else 0)
    except DifferentConditionsError as error:
        raise typer.BadParameter(str(error)) from None
