"""Fixtures that all suites share."""

from __future__ import annotations

import pytest
import torch

from fusedopt.verify import isa, threads
from helpers import ISAS


@pytest.fixture(params=ISAS)
def each_isa(request):
    """Runs a test on every instruction set of this CPU."""
    with isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def restore_threads():
    with threads(torch.get_num_threads()):
        yield
