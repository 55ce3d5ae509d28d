"""Fixtures that all suites share."""

from __future__ import annotations

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from fusedopt.checking.verify import isa, threads
from helpers import ISAS

# Short and the same each time; or as many examples as one wants, other ones each time.
EXAMPLES = os.environ.get("FUSEDOPT_EXAMPLES")
COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}
FINDING = (Phase.explicit, Phase.reuse, Phase.generate)
settings.register_profile(
    "short", max_examples=250, derandomize=True, phases=(*FINDING, Phase.shrink), **COMMON
)
settings.register_profile(
    "long", max_examples=int(EXAMPLES or 1), phases=(*FINDING, Phase.shrink), **COMMON
)
# For tests/mutants.py, which asks whether a fault is found, not for the least example.
settings.register_profile("mutants", settings.get_profile("short"), phases=FINDING)
settings.load_profile("long" if EXAMPLES else "short")


def pytest_collection_finish():
    """What has been imported stays: collections that tests ask for need not walk through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=ISAS)
def each_isa(request):
    """Runs a test on every instruction set of this CPU."""
    with isa(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def restore_threads():
    with threads(torch.get_num_threads()):
        yield
