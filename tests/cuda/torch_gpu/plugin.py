"""A plugin for pytest, with which the checks in ``tests/gpu`` run without a GPU.

``PYTHONPATH=tests/cuda pytest -p torch_gpu.plugin -o python_files='check_*.py' tests/gpu``
"""

from __future__ import annotations

from typing import Any

import pytest

from torch_gpu import runtime

_BACKWARD = "torch's backward pass asks the part of torch that is for a GPU for its streams"
_AT_ONCE = "torch's own operations are carried out at once, for which the host waits"
_SPARSE = "torch has no sparse tensors of a GPU without one"
_MEMORY = "the stand-in has 64 MB of memory"

# What cannot pass here, by the beginning of its name. Any of it that passes is an error.
CANNOT_PASS = {
    "check_clipping.py::test_a_clipped_step_does_not_synchronise": _AT_ONCE,
    "check_graphs.py::test_a_whole_training_step_in_one_graph": _BACKWARD,
    "check_launches.py::test_a_first_step_does_not_wait_either": _AT_ONCE,
    "check_layouts.py::test_autograd_notices_the_update": _BACKWARD,
    "check_refusals.py::test_refused_step_changes_nothing[sparse gradient": _SPARSE,
    "check_refusals.py::test_refused_step_changes_nothing_on_the_cpu_either[sparse": _SPARSE,
    "check_scaler.py::test_a_scaled_step_does_not_synchronise": _AT_ONCE,
    "check_scaler.py::test_autocast_training": _BACKWARD,
}

# What is not tried.
NOT_TRIED = {
    "check_bits.py::test_many_tensors_of_many_chunks": _MEMORY,
    "check_large.py::": _MEMORY,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --one-of-each and --ptx."""
    parser.addoption("--one-of-each", action="store_true", help="one case of each check")
    parser.addoption("--ptx", help="run the compiled kernels, from the PTX of this architecture")


def pytest_configure(config: pytest.Config) -> None:
    """Before any test is imported."""
    architecture = config.getoption("--ptx")
    if architecture:
        from compiled_cuda import Interpreter, native  # which looks for the built module, too

        native.set_executor(Interpreter(architecture, seed=0))
    runtime.install()


def pytest_runtest_teardown() -> None:
    """What went wrong is a failure of the check in which it did."""
    runtime.synchronize()


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Marks what cannot pass; leaves the first case of each check if no more is asked for."""
    wants_one = config.getoption("--one-of-each")
    for name, reason in {**CANNOT_PASS, **NOT_TRIED}.items():
        mark = pytest.mark.xfail(reason=reason, run=name in CANNOT_PASS, strict=True)
        found = [item for item in items if item.nodeid.rpartition("/")[2].startswith(name)]
        for item in found:
            item.add_marker(mark)
        if wants_one and not found:
            raise pytest.UsageError(f"no check is called {name}")
    if wants_one:
        first = {(item.path, item.originalname): item for item in reversed(items)}
        items[:] = [item for item in items if first[item.path, item.originalname] is item]
