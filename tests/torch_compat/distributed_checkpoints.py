"""What the processes of test_distributed.py save, and load in other numbers."""

from __future__ import annotations

import warnings

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from distributed_helpers import (
    CLOSE,
    LAST_CASES,
    Uneven,
    full,
    network,
    sharded,
)
from helpers import bits

with warnings.catch_warnings():  # importing it calls what torch has deprecated
    warnings.simplefilter("ignore", DeprecationWarning)


def given_gradients(model, step):
    """Gradients that do not depend on the number of ranks, not even in their rounding."""
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        whole = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        p.grad = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)


def classes_of(case):
    """Whose optimizer a checkpoint is of, and its class."""
    return {
        "fusedopt": case.row.optimizer,
        **({"torch": case.row.torch_optimizer} if case.row.torch_optimizer else {}),
    }


def train_with_given_gradients(model, optimizer, steps):
    for step in steps:
        given_gradients(model, step)
        optimizer.step()


def whole_parameters(model):
    return [full(p).detach().clone() for p in model.parameters()]


def state_of(model, optimizer):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def save(rank, world_size, folder):
    """Writes a checkpoint of every case in mid-training, and where the training ends."""
    mesh = init_device_mesh("cpu", (world_size,))
    states, trained, ends = {}, [], {}
    for case in LAST_CASES:
        for of, optimizer_class in classes_of(case).items():
            model = sharded(network(), mesh)
            optimizer = optimizer_class(model.parameters(), **case.options)
            train_with_given_gradients(model, optimizer, range(3))
            states[f"{of} {case}"] = state_of(model, optimizer)
            trained.append((f"{of} {case}", model, optimizer))
    dcp.save(states, checkpoint_id=folder / "checkpoint")
    for key, model, optimizer in trained:
        train_with_given_gradients(model, optimizer, range(3, 6))
        ends[key] = whole_parameters(model)
    if rank == 0:
        torch.save(ends, folder / "ends.pt")


def load(rank, world_size, folder):
    """Resumes every case on another number of ranks, ours also from torch's and for torch's."""
    mesh = init_device_mesh("cpu", (world_size,))
    states, resumed = {}, {}
    pairs = [
        (case, of, by)
        for case in LAST_CASES
        for of in classes_of(case)
        for by in classes_of(case)
        if "fusedopt" in (of, by)
    ]
    ends = torch.load(folder / "ends.pt")
    for by in ("fusedopt", "torch"):  # each reads the whole checkpoint
        for case, of in ((case, of) for case, of, reader in pairs if reader == by):
            torch.manual_seed(1)
            model = sharded(Uneven().double(), mesh)
            optimizer = classes_of(case)[by](model.parameters(), **{**case.options, "lr": 123.0})
            states[f"{of} {case}"] = state_of(model, optimizer)
            resumed[f"{of} {case}"] = model, optimizer
        dcp.load(states, checkpoint_id=folder / "checkpoint")
        for key, (model, optimizer) in resumed.items():
            set_model_state_dict(model, states[key]["model"])
            set_optimizer_state_dict(model, optimizer, states[key]["optimizer"])
            train_with_given_gradients(model, optimizer, range(3, 6))
            for p, end in zip(whole_parameters(model), ends[key], strict=True):
                if key.startswith("fusedopt") and by == "fusedopt":
                    assert np.array_equal(bits(p), bits(end)), key
                else:
                    torch.testing.assert_close(p, end, **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
        states.clear()
        resumed.clear()
