"""What the processes of check_offload_deepspeed.py do, with DeepSpeed's accelerator for CPUs."""

from __future__ import annotations

import os

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.utils import ZeRORuntimeException

import fusedopt
from helpers import bits


def in_group(rank, function, world_size, rendezvous, *args):
    """Runs a check in a process group of gloo."""
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
    )
    try:
        function(*args)
    finally:
        dist.destroy_process_group()


def start(stage, optimizer_class, seed=0, config=None, **options):
    """An engine that offloads, of a network whose groups are two layers; bfloat16."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 160), torch.nn.GELU(), torch.nn.Linear(160, 64)
    ).bfloat16()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.02}]
    offload = {"device": "cpu", "pin_memory": False}
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer_class(groups, lr=0.01, **options),
        config={
            "train_micro_batch_size_per_gpu": 8,
            "bf16": {"enabled": True},
            "gradient_clipping": 0.1,
            "zero_optimization": {"stage": stage, "offload_optimizer": offload},
            "zero_force_ds_cpu_optimizer": False,
            "zero_allow_untested_optimizer": True,
            **(config or {}),
        },
    )
    return engine


def train(engine, steps):
    """Each rank has its own batches, and a batch for each step."""
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
        inputs = torch.randn(8, 64, generator=generator).bfloat16()
        engine.backward(engine(inputs).float().square().mean())
        engine.step()


def masters(engine):
    """The flat float32 tensors that this rank steps."""
    stages = engine.optimizer
    names = "fp32_partitioned_groups_flat", "single_partition_of_fp32_groups"
    (tensors,) = (getattr(stages, name) for name in names if hasattr(stages, name))
    return tensors


def assert_same_bits(tensors, others):
    for tensor, other in zip(tensors, others, strict=True):
        assert np.array_equal(bits(tensor), bits(other))


OPTIONS = ({}, {"state_bits": 16}, {"state_bits": 8})


def steps_are_those_of_a_plain_optimizer(stage):
    """DeepSpeed steps one group at a time, so each has a plain optimizer of its own here."""
    for options in OPTIONS:
        engine = start(stage, fusedopt.AdamW, **options)
        first = [tensor.detach().clone() for tensor in masters(engine)]
        twins = [torch.nn.Parameter(tensor.clone()) for tensor in first]
        plain = [
            fusedopt.AdamW([twin], lr=lr, **options)
            for twin, lr in zip(twins, (0.01, 0.02), strict=True)
        ]
        engine.optimizer.optimizer.register_step_pre_hook(follower(masters(engine), twins, plain))
        train(engine, range(4))
        assert_same_bits(masters(engine), twins)
        assert not any(torch.equal(twin, tensor) for twin, tensor in zip(twins, first, strict=True))


def follower(tensors, twins, plain):
    """A hook by which plain optimizers step the twins of tensors with the same gradients."""

    def follow(optimizer, args, kwargs):
        for param in [param for group in optimizer.param_groups for param in group["params"]]:
            (index,) = (i for i, tensor in enumerate(tensors) if tensor is param)
            assert param.dtype == param.grad.dtype == torch.float32
            twins[index].grad = param.grad.detach().clone()
            plain[index].step()

    return follow


def resumes_exactly(stage, folder):
    for number, options in enumerate(OPTIONS):
        whole = start(stage, fusedopt.AdamW, **options)
        train(whole, range(3))
        whole.save_checkpoint(str(folder / f"checkpoint{number}"))
        train(whole, range(3, 5))
        resumed = start(stage, fusedopt.AdamW, seed=1, **{**options, "weight_decay": 0.5})
        resumed.load_checkpoint(str(folder / f"checkpoint{number}"))
        train(resumed, range(3, 5))
        assert_same_bits(masters(resumed), masters(whole))


def says_what_it_does_not_take(stage):
    """What the guide says of options, of Adagrad and of DeepSpeed's key."""
    with pytest.raises(ZeRORuntimeException, match="zero_force_ds_cpu_optimizer"):
        start(stage, fusedopt.AdamW, config={"zero_force_ds_cpu_optimizer": True})
    engine = start(stage, fusedopt.AdamW, master_weights=True)
    with pytest.raises(ValueError, match="master_weights needs a bfloat16 parameter"):
        train(engine, range(1))
    replaced = start(stage, fusedopt.Adagrad).optimizer.optimizer
    assert type(replaced) is torch.optim.Adagrad
    with pytest.raises(TypeError, match="state_bits"):
        start(stage, fusedopt.Adagrad, state_bits=8)
