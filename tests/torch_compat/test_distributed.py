"""torch.distributed: the wrappers that shard or replicate, on gloo, in several processes."""

from __future__ import annotations

import time

import pytest
import torch.multiprocessing

import distributed_checkpoints as checkpoints
import distributed_workers as workers
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


@pytest.mark.parametrize(
    ("function", "world_size"),
    [
        (workers.ddp, 2),
        (workers.fsdp, 4),
        (workers.grad_scaler, 2),
        (workers.zero, 3),
        (workers.tensor_parallel, 2),
        (workers.pending, 2),
        (workers.placed_otherwise, 4),
        (workers.mixed, 2),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wrapped(run, function, world_size):
    run(function, world_size)


def test_checkpoint_moves_to_another_number_of_ranks(run, tmp_path):
    run(checkpoints.save, 2, tmp_path)
    run(checkpoints.load, 4, tmp_path)
    run(checkpoints.load, 1, tmp_path)
