"""torch.distributed: the wrappers that shard or replicate, on gloo, in several processes."""

from __future__ import annotations

import clipping_workers as clipping
import pytest

import distributed_checkpoints as checkpoints
import distributed_workers as workers


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
        (clipping.fsdp_norm, 2),
        (clipping.fsdp_uneven_norm, 4),
        (clipping.norm_over_meshes, 4),
        (clipping.zero_is_refused, 2),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_wrapped(run, function, world_size):
    run(function, world_size)


def test_checkpoint_moves_to_another_number_of_ranks(run, tmp_path):
    run(checkpoints.save, 2, tmp_path)
    run(checkpoints.load, 4, tmp_path)
    run(checkpoints.load, 1, tmp_path)
