"""How tests run checks in several processes."""

from __future__ import annotations

import itertools

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def ranks():
    """Processes that tests share, as many as the largest group has needed."""
    processes = Ranks()
    yield processes
    processes.stop()


@pytest.fixture
def run(ranks, tmp_path):
    """Runs a check in several processes and raises what one of them raised."""
    numbers = itertools.count()

    def start(function, world_size, *args):
        ranks.run(function, world_size, tmp_path / f"rendezvous{next(numbers)}", *args)

    return start
