"""Deliberate faults, and whether the tests find them: ``make mutants``.

Every fault is applied alone to a copy of the source in ``build/mutants``, which is built there and
tested until the first failure. The exit status is 1 if a fault survives. Names as arguments choose
some: ``python tests/mutants.py csrc/cuda "no decay"`` runs those whose file and name, as they are
printed, contain one of them.

The copy is built with little optimisation: it is about what the code says, not how fast it is.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from mutant import OF_EVERYTHING, ROOT, Mutant
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from faults import MUTANTS

BUILD = ROOT / "build" / "mutants"
SOURCE = BUILD / "source"
COPIED = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc", "fusedopt", "tests")

SECONDS = 900


def run(*command: object, cwd: Path = BUILD) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def must(*command: object) -> str:
    """The output of a command that has to succeed."""
    result = run(*command)
    if result.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{result.stdout[-4000:]}")
    return result.stdout


def write(path: Path, text: str) -> None:
    """Writes what has changed only, so that only that is built again."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def copy_sources() -> None:
    for name in COPIED:
        path = ROOT / name
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and file.suffix not in (".pkl", ".pyc", ".so"):
                write(SOURCE / file.relative_to(ROOT), file.read_text())


def configure() -> None:
    """One build folder for all faults: what a fault leaves alone is built once."""
    pybind11 = must(sys.executable, "-m", "pybind11", "--cmakedir").strip()
    must(
        "cmake", "-G", "Ninja", "-S", SOURCE, "-B", BUILD / "cmake",
        "-DFUSEDOPT_CUDA=OFF", "-DFUSEDOPT_TESTING=ON",
        "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}",
        f"-DSKBUILD_PROJECT_VERSION={version('fusedopt')}", f"-DCMAKE_INSTALL_PREFIX={SOURCE}",
    )  # fmt: skip


def build() -> None:
    must("cmake", "--build", BUILD / "cmake")
    must("cmake", "--install", BUILD / "cmake")


def first_failure(tests: tuple[str, ...]) -> str | None:
    """The test that fails first, or None. A crash is a failure too."""
    result = run(
        sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
        "--hypothesis-profile=mutants", *(f"tests/{name}" for name in tests), cwd=SOURCE,
    )  # fmt: skip
    if result.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", result.stdout, re.MULTILINE)
    if found is not None:
        return found[1]
    if result.returncode < 0:
        return f"a crash, {signal.Signals(-result.returncode).name}"
    raise RuntimeError(f"pytest failed:\n{result.stdout[-4000:]}")


def finder_of(mutant: Mutant) -> str | None:
    """The first test that fails with the fault."""
    path = SOURCE / mutant.file
    original = path.read_text()
    try:
        path.write_text(mutant.applied_to(original))
        build()
        return first_failure(mutant.tests)
    finally:
        path.write_text(original)


def chosen(names: list[str]) -> list[Mutant]:
    """Those whose file and name, as they are printed, contain one of the names; all without one."""
    return [m for m in MUTANTS if not names or any(name in str(m) for name in names)]


def check_the_original(console: Console) -> None:
    """Without this, tests that always fail would find every fault."""
    build()
    with console.status("the tests without a fault"):
        failure = first_failure(OF_EVERYTHING)
    if failure:
        raise RuntimeError(f"{failure} fails without a fault")


def main(names: list[str]) -> int:
    console = Console()
    mutants = chosen(names)
    BUILD.mkdir(parents=True, exist_ok=True)
    copy_sources()
    configure()
    if not names:
        check_the_original(console)
    survivors = 0
    with Progress(console=console) as bar:
        task = bar.add_task("building", total=len(mutants))
        for mutant in mutants:
            bar.update(task, description=mutant.name)
            finder = finder_of(mutant)
            survivors += finder is None
            verdict = f"found by {escape(finder)}" if finder else "[bold red]SURVIVES"
            console.print(f"{mutant}: {verdict}", highlight=False, soft_wrap=True)
            bar.advance(task)
    console.print(f"{len(mutants)} faults, {survivors} survive")
    return 1 if survivors or not mutants else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
