"""Makes every check here fail, not skip, where there is no GPU or no CUDA engine.

Their files are named so that a plain ``pytest`` does not collect them:
``pytest -o python_files='check_*.py' tests/gpu``.
"""

from __future__ import annotations

import importlib

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _gpu():
    if not torch.cuda.is_available():
        pytest.fail("torch finds no usable GPU")
    try:
        importlib.import_module("fusedopt._cuda")
    except ImportError as error:
        pytest.fail(f"fusedopt was built without its CUDA engine: {error}")


@pytest.fixture(autouse=True)
def _leave_the_gpu_idle(_gpu):
    """So that a launch that fails late is reported by the check that it belongs to."""
    yield
    torch.cuda.synchronize()
