"""The body of the CUDA kernels as an engine for tensors on the CPU."""

from __future__ import annotations

import contextlib

import pytest

from fusedopt import _native

try:
    from fusedopt import _emulated_cuda as emulated
except ImportError:
    pytest.fail(
        "these tests need the module that `make install` builds: "
        "pip install . --config-settings=cmake.define.FUSEDOPT_TESTING=ON",
        pytrace=False,
    )


@contextlib.contextmanager
def emulation(overflows=False, seed=0, fails=False, first=0):
    """Steps tensors on the CPU with the body of the CUDA kernels.

    What is rounded stochastically draws as parts of larger tensors, which begin at ``first``.
    """
    emulated.configure(overflows, seed, fails, first)
    _native.use_engine_on_cpu(emulated.engine)
    try:
        yield
    finally:
        _native.use_engine_on_cpu(None)
