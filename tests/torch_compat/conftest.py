"""How tests run checks in several processes."""

from __future__ import annotations

import time

import pytest
import torch.multiprocessing

from distributed_helpers import in_group

PRELOAD = [
    "fusedopt",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor.parallel",
]
SECONDS = 120  # of a check that takes seconds: a hang has to fail, and nothing else


@pytest.fixture
def run(tmp_path):
    """Runs a check in several processes and raises what one of them raised."""
    # A server that has imported torch forks them: a tenth of the time of importing it in each.
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    groups = []

    def start(function, world_size, *args):
        rendezvous = tmp_path / f"rendezvous{len(groups)}"
        group = torch.multiprocessing.start_processes(
            in_group,
            (function, world_size, rendezvous, *args),
            nprocs=world_size,
            join=False,
            start_method="forkserver",
        )
        groups.append(group)
        deadline = time.monotonic() + SECONDS
        while not group.join(timeout=1):
            assert time.monotonic() < deadline, f"{function.__name__} hangs"

    yield start
    for group in groups:
        for process in group.processes:
            process.kill()
            process.join()
