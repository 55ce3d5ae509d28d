"""The commands of ``fusedopt``: their options and nothing else."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, BadParameter, Option
from typer.core import TyperCommand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

app = typer.Typer(no_args_is_help=True, add_completion=False)

MOST_THREADS = 1024  # where OpenMP cannot start its threads, it ends the process


def _with_names(find: Callable[[], dict[str, Iterable[str]]]) -> type[TyperCommand]:
    """A command whose help ends with the names that its options take.

    They are looked up when the help is shown: finding them imports torch.
    """

    class WithNames(TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            self.epilog = "\n\n".join(f"{what}: {', '.join(of)}." for what, of in find().items())
            super().format_help(ctx, formatter)

    return WithNames


def _names_of_bench() -> dict[str, Iterable[str]]:
    from fusedopt.benchmarks.contestants.contests import CONTESTS, PEERS
    from fusedopt.benchmarks.run import PARTS
    from fusedopt.benchmarks.workloads.tensors import WORKLOADS

    return {
        "Workloads": WORKLOADS,
        "Parts": PARTS,
        "Optimizers": CONTESTS,
        "Peers": ("all", *PEERS),
    }


def _names_of_trajectories() -> dict[str, Iterable[str]]:
    from fusedopt.plotting.trajectories.search import OPTIMIZERS
    from fusedopt.plotting.trajectories.surfaces import SURFACES

    return {"Surfaces": SURFACES, "Optimizers": OPTIMIZERS}


def _writable(path: Path | None) -> Path | None:
    """A file or a folder that can be written, or be made; it is not made yet."""
    if path is not None:
        existing = next(p for p in (path, *path.absolute().parents) if p.exists())
        if existing != path and not existing.is_dir():
            raise BadParameter(f"{path}: {existing} is no folder")
        if not os.access(existing, os.W_OK):
            raise BadParameter(f"{path}: {existing} cannot be written")
    return path


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
    from fusedopt.checking.report import print_verification

    raise typer.Exit(code=1 if print_verification() else 0)


@app.command(cls=_with_names(_names_of_bench))
def bench(
    quick: Annotated[bool, Option("--quick", help="About a minute on two cores.")] = False,
    only: Annotated[
        list[str] | None, Option(help="A workload or a part, see below; repeat for more.")
    ] = None,
    optimizer: Annotated[list[str] | None, Option(help="An optimizer; repeat for more.")] = None,
    peers: Annotated[
        list[str] | None, Option(help="Who is timed beside fusedopt; repeat for more.")
    ] = None,
    threads: Annotated[
        int | None, Option(min=1, max=MOST_THREADS, help="Threads of both sides.")
    ] = None,
    dtype: Annotated[str, Option(help="float32, float64, bfloat16 or float16.")] = "float32",
    json: Annotated[
        Path | None,
        Option(
            callback=_writable,
            help="Write every measurement to this file or into this folder.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, Option(callback=_writable, help="Draw pictures into this folder.")
    ] = None,
    device: Annotated[str, Option(help="cpu or cuda.")] = "cpu",
    aims: Annotated[
        bool, Option("--aims", help="For maintainers: what is aimed at, and what is reached.")
    ] = False,
) -> None:
    """Time a step beside torch's implementations and beside a kernel that only moves memory."""
    from fusedopt.benchmarks.run import run
    from fusedopt.names import UnknownNameError

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
            aims=aims,
        )
    except UnknownNameError as error:
        raise BadParameter(str(error)) from None


@app.command(cls=_with_names(_names_of_trajectories))
def trajectories(
    out: Annotated[
        Path, Option(file_okay=False, callback=_writable, help="Write into this folder.")
    ] = Path("trajectories"),
    only: Annotated[list[str] | None, Option(help="A surface, see below; repeat for more.")] = None,
    optimizer: Annotated[list[str] | None, Option(help="An optimizer; repeat for more.")] = None,
    steps: Annotated[int, Option(min=1, help="Steps of every optimizer.")] = 200,
    each: Annotated[bool, Option("--each", help="Also a picture of each optimizer.")] = False,
    max_grad_norm: Annotated[float | None, Option(min=0, help="Clip gradients to it.")] = None,
    l1: Annotated[float, Option(min=0, help="The factor of an L1 penalty.")] = 0.0,
    ema_decay: Annotated[
        float | None, Option(min=0, max=1, help="Draw averages with it; 1: the plain mean.")
    ] = None,
) -> None:
    """Draw every optimizer's path over loss surfaces, with learning rates that a search chose."""
    from fusedopt.names import UnknownNameError
    from fusedopt.plotting.trajectories.command import print_trajectories

    options = {"max_grad_norm": max_grad_norm, "l1": l1 or None, "ema_decay": ema_decay}
    asked_for = {name: value for name, value in options.items() if value is not None}
    try:
        print_trajectories(out, only or (), optimizer or (), steps, each, **asked_for)
    except UnknownNameError as error:
        raise BadParameter(str(error)) from None


@app.command()
def compare(
    before: Annotated[Path, Argument(help="A file that bench --json has written.")],
    after: Annotated[Path, Argument(help="A later one.")],
    threshold: Annotated[
        float, Option(min=0, help="A step counts as slower from this fraction on: 0.05 is 5%.")
    ] = 0.05,
    force: Annotated[bool, Option("--force", help="Also across machines and settings.")] = False,
) -> None:
    """Compare two results of bench; exit status 1 if a step of fusedopt has become slower."""
    from fusedopt.benchmarks.reporting.compare import NotComparableError, print_comparison

    try:
        raise typer.Exit(code=1 if print_comparison(before, after, threshold, force) else 0)
    except NotComparableError as error:
        raise BadParameter(str(error)) from None
