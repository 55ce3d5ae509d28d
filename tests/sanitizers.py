"""The tests under gcc's sanitizers, and the CPU engine under valgrind: ``make sanitize``.

For each of address, undefined and thread: builds the extension for that sanitizer into
``build/sanitize``, has it find a planted fault of its kind (``tests/native/planted_faults.cpp``),
then runs a part of the tests. memcheck runs ``tests/native/engine_run.cpp``, after it has found the
faults planted there. The exit status is 1 if anything was found or a planted fault was not.

Only this package is built for the sanitizers. Python, torch and libgomp are not:

* ThreadSanitizer sees the locks of all (it replaces pthread's functions) but not the barriers of
  libgomp, so ``csrc/cpu/threads.cpp`` tells it what they order, and nothing more. Reports about
  memory that others access are off (``ignore_noninstrumented_modules``); there are no suppressions.
* Leaks are left to ``tests/native/test_processes.py``: Python itself frees little when it ends.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "sanitize"

# The tests that a sanitizer can say something about, in a few minutes. Left out are measurements of
# memory, which a sanitizer needs for itself, what reads the machine code, and what says the same
# many times.
TESTS = [
    "torch_compat/test_amp.py",
    "native/test_attach.py",
    "native/test_reading.py",
    "native/test_forks.py",
    "bits/test_at_iterate.py",
    "bits/test_epilogue.py",
    "bits/test_fewer_bytes.py",
    "bits/test_layouts.py",
    "bits/test_long_runs.py",
    "bits/test_norm.py",
    "native/test_processes.py",
    "torch_compat/test_averaged.py",
    "torch_compat/test_clipping_refusals.py",
    "torch_compat/test_norms.py",
    "torch_compat/test_refusals.py",
    "torch_compat/test_refused_inputs.py",
    "native/test_runtime.py",
]
# Of processes that a server forks, which has one thread: all sanitizers see what they do.
RANKS = "torch_compat/test_distributed.py::test_wrapped[fsdp_norm-2]"
CUDA_ON_THE_HOST = [
    "cuda/test_cuda_emulated.py",
    "cuda/test_cuda_norm.py",
    "cuda/test_cuda_engine_norm.py",
]
NOT_THESE = (
    "not leak and not allocates_nothing and not gil_is_released and not no_thread_can_be_made"
    " and not reads_every_page and not steps_in_flight"
)
# ThreadSanitizer itself does not support a forked child that makes threads.
IN_ONE_THREAD = "native/test_forks.py::test_steps_in_forked_children_of_forked_children"
# What works on several threads, OpenMP's or Python's.
IN_THREADS = [
    "native/test_runtime.py",
    "native/test_processes.py",
    "bits/test_epilogue.py::test_sizes_and_threads_write_nothing_outside",
    "bits/test_norm.py::test_every_size_thread_count_and_instruction_set",
    "bits/test_norm.py::test_threads_and_layouts_give_the_same_bits",
    "cuda/test_cuda_engine.py::test_two_threads",
    RANKS,
]


@dataclass
class Sanitizer:
    """How gcc calls it, what it needs and what it says of its planted fault."""

    name: str
    report: str
    runtime: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=lambda: TESTS)


SANITIZERS = [
    Sanitizer(
        "address",
        "heap-buffer-overflow",
        "libasan.so",
        {"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0", "PYTHONMALLOC": "malloc"},
        [*TESTS, RANKS, *CUDA_ON_THE_HOST],
    ),
    Sanitizer(
        "undefined",
        "signed integer overflow",
        environment={"UBSAN_OPTIONS": "print_stacktrace=1"},
        tests=[*TESTS, RANKS, *CUDA_ON_THE_HOST],
    ),
    Sanitizer(
        "thread",
        "data race",
        "libtsan.so",
        # A process ends at once: those that tests keep as ranks are killed, whatever they found.
        {"TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66:halt_on_error=1"},
        [IN_ONE_THREAD, *IN_THREADS],
    ),
]


def run(command: list[str], environment: dict[str, str] | None = None, show: bool = False):
    """Runs a command in the root of the repository; its output is kept, or shown."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.STDOUT,
        text=True,
        check=False,
    )


def must_run(command: list[str]) -> None:
    """Runs what has to succeed before anything can be looked for."""
    result = run(command)
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{result.stdout}")


def library_path(name: str) -> str:
    """Where gcc has a library."""
    path = run(["gcc", f"-print-file-name={name}"]).stdout.strip()
    return str(Path(path).resolve())


def build(name: str) -> Path:
    """Builds and installs the package for a sanitizer or memcheck; returns where."""
    target = BUILD / name
    testing = "OFF" if name == "memcheck" else "ON"  # its program needs no module of the tests
    defines = {"SANITIZE": name, "CUDA": "OFF", "TESTING": testing}
    settings = [f"cmake.define.FUSEDOPT_{key}={value}" for key, value in defines.items()]
    settings.append(f"build-dir={target}-build")
    must_run([
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade",
        f"--target={target}", *(f"--config-settings={setting}" for setting in settings), ".",
    ])  # fmt: skip
    return target


def environment_of(sanitizer: Sanitizer, target: Path) -> dict[str, str]:
    """Loads the sanitizer's runtime ahead of everything else, and its build instead of another."""
    environment = {**sanitizer.environment, "PYTHONPATH": str(target)}
    if sanitizer.runtime:
        # The C++ runtime with it, because Python does not have it yet when the sanitizer asks.
        libraries = [library_path(name) for name in (sanitizer.runtime, "libstdc++.so.6")]
        environment["LD_PRELOAD"] = " ".join(libraries)
    return environment


def plant(fault: str, environment: dict[str, str]):
    """Runs one of the planted faults."""
    code = f"import fusedopt; from fusedopt import _planted_faults as f; f.{fault}()"
    return run([sys.executable, "-c", code], environment)


def check_sanitizer(sanitizer: Sanitizer) -> list[str]:
    """What is wrong, in lines."""
    environment = environment_of(sanitizer, build(sanitizer.name))
    problems = []
    found = plant(sanitizer.name, environment)
    if found.returncode == 0 or not re.search(sanitizer.report, found.stdout):
        problems.append(f"did not find its planted fault\n{found.stdout}")
    nothing = plant("none", environment)
    if nothing.returncode != 0:
        problems.append(f"reported a fault where there is none\n{nothing.stdout}")
    tests = [f"tests/{name}" for name in sanitizer.tests]
    # Not by descriptor: what a sanitizer writes as it ends the process would be lost with it.
    options = ["-q", "-p", "no:cacheprovider", "--capture=sys", "-k", NOT_THESE]
    pytest = [sys.executable, "-m", "pytest", *options]
    if run([*pytest, *tests], environment, show=True).returncode != 0:
        problems.append("tests failed or faults were found, see above")
    return problems


def check_memcheck() -> list[str]:
    """What is wrong, in lines. valgrind's CPU has AVX2 and no AVX-512, so AVX2 is what runs."""
    program = build("memcheck") / "fusedopt" / "engine_run"
    memcheck = ["valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite",
                "--error-exitcode=99", str(program)]  # fmt: skip
    problems = []
    for fault, report in (("overrun", "Invalid read"), ("uninitialised", "uninitialised value")):
        found = run([*memcheck, fault])
        if found.returncode != 99 or report not in found.stdout:
            problems.append(f"did not find the planted fault '{fault}'\n{found.stdout}")
    result = run(memcheck)
    print(result.stdout, end="")
    if result.returncode != 0:
        problems.append("faults were found, see above")
    return problems


def main() -> int:
    """Runs those that are named, or all, and prints a line for each."""
    checks = {sanitizer.name: lambda s=sanitizer: check_sanitizer(s) for sanitizer in SANITIZERS}
    checks["memcheck"] = check_memcheck
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("which", nargs="*", metavar="|".join(checks))
    which = parser.parse_args().which or list(checks)
    summary, failed = [], False
    for name in which:
        begin = time.monotonic()
        problems = checks[name]()
        failed = failed or bool(problems)
        outcome = "nothing found" if not problems else "; ".join(problems)
        summary.append(f"{name:10} {time.monotonic() - begin:4.0f} s  {outcome}")
    print("\n".join(["", *summary]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
