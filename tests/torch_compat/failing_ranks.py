"""What the processes of test_ranks.py run."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def sums(rank, world_size):
    total = torch.tensor(float(rank))
    dist.all_reduce(total)
    assert total.item() == sum(range(world_size))


def raises(rank, world_size):
    if rank == 1:
        raise ValueError("of rank 1")
    dist.barrier()


def crashes(rank, world_size):
    if rank == 1:
        os._exit(1)
    dist.barrier()
