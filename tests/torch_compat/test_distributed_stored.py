"""Fewer bytes in shards: the bits of one process where they can be, and of the shard elsewhere."""

from __future__ import annotations

import distributed_stored as workers
import distributed_stored_checkpoints as checkpoints
import distributed_stored_wrappers as wrappers
import pytest


@pytest.mark.parametrize(
    ("function", "world_size"),
    [
        (workers.aligned_shards, 2),
        (workers.unaligned_shards, 2),
        (workers.one_after_the_other, 4),
        (workers.columns, 2),
        (workers.cut_twice, 4),
        (workers.refused, 4),
        (checkpoints.whole, 2),
        (checkpoints.whole_of_other_shards, 2),
        (checkpoints.converted, 2),
        (wrappers.ddp, 2),
        (wrappers.zero, 2),
        (wrappers.zero_draws, 2),
        (wrappers.policies, 2),
        (wrappers.averaged, 2),
        (wrappers.at_iterate, 2),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_stored(run, function, world_size):
    run(function, world_size)


def test_a_checkpoint_is_resumed_on_any_number_of_ranks(run, tmp_path):
    shapes = workers.ALIGNED
    run(checkpoints.save, 2, tmp_path / "two", "fsdp", shapes)
    run(checkpoints.resume, 2, tmp_path / "two", "fsdp", shapes)
    run(checkpoints.resume, 1, tmp_path / "two", "fsdp", shapes)
    run(checkpoints.resume, 1, tmp_path / "two", "plain", shapes)
    run(checkpoints.save, 1, tmp_path / "one", "plain", shapes, checkpoints.FLAT)
    run(checkpoints.resume, 2, tmp_path / "one", "fsdp", shapes, checkpoints.FLAT)
    run(checkpoints.resume, 2, tmp_path / "one", "plain", shapes, checkpoints.FLAT)


@pytest.mark.parametrize("how", ["fsdp", "columns"])
def test_codes_of_shards_are_resumed_by_the_same_shards(run, tmp_path, how):
    shapes = checkpoints.shapes_of(how, workers.UNALIGNED)
    run(checkpoints.save, 2, tmp_path, how, shapes)
    run(checkpoints.resume, 2, tmp_path, how, shapes)
    if how == "fsdp":
        run(checkpoints.resume_from_other_shards, 1, tmp_path)
