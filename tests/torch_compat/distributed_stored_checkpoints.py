"""What the processes of test_distributed_stored.py save in fewer bytes, and resume."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_stored import (
    ALIGNED,
    STORED,
    UNALIGNED,
    Parameters,
    assert_same,
    flat_mesh,
    replaced,
    sharded,
    train,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import Shard

import fusedopt

BEFORE, AFTER = range(3), range(3, 5)
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def wrapped(how, shapes, dtype):
    if how == "plain":
        return Parameters(shapes, dtype)
    if how == "columns":
        return replaced(shapes, dtype, flat_mesh(), [Shard(1)])
    return sharded(shapes, dtype)


def states_of(model, optimizer, options):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def shapes_of(how, which):
    return ((20, 512), (9, 768)) if how == "columns" else which


def optimizer_of(model, stored):
    """Another learning rate: the checkpoint's counts."""
    return fusedopt.AdamW(model.parameters(), lr=123.0, **STORED[stored][1])


def save(rank, world_size, folder, how, shapes, options=None):
    """Writes a checkpoint of every way of storing."""
    states = {}
    for stored, (dtype, asked) in enumerate(STORED):
        model = wrapped(how, shapes, dtype)
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1, **asked)
        train(model, optimizer, BEFORE)
        states[f"stored {stored}"] = states_of(model, optimizer, options)
    dcp.save(states, checkpoint_id=folder)


def resume(rank, world_size, folder, how, shapes, options=None):
    """Goes on where :func:`save` stopped, and gets to where an uninterrupted run gets."""
    states, resumed = {}, []
    for stored, (dtype, _) in enumerate(STORED):
        model = wrapped(how, shapes, dtype)
        optimizer = optimizer_of(model, stored)
        states[f"stored {stored}"] = states_of(model, optimizer, options)
        resumed.append((model, optimizer))
    dcp.load(states, checkpoint_id=folder)
    for stored, (model, optimizer) in enumerate(resumed):
        loaded = states[f"stored {stored}"]
        set_model_state_dict(model, loaded["model"])
        set_optimizer_state_dict(model, optimizer, loaded["optimizer"], options=options)
        train(model, optimizer, AFTER)
        dtype, asked = STORED[stored]
        again = wrapped(how, shapes, dtype)
        uninterrupted = fusedopt.AdamW(again.parameters(), lr=0.1, **asked)
        train(again, uninterrupted, (*BEFORE, *AFTER))
        assert_same(model, optimizer, again, uninterrupted, f"{how} {asked}")


def resume_from_other_shards(rank, world_size, folder):
    """Codes whose blocks belong to other shards are refused, by their name; 16 bits resume."""
    for stored, (dtype, asked) in enumerate(STORED):
        model = wrapped("fsdp", UNALIGNED, dtype)
        optimizer = optimizer_of(model, stored)
        states = {f"stored {stored}": states_of(model, optimizer, None)}
        if asked.get("state_bits") != 8:
            dcp.load(states, checkpoint_id=folder)
            continue
        with pytest.raises(dcp.CheckpointException, match=r"Size mismatch .*exp_avg\w*_scale"):
            dcp.load(states, checkpoint_id=folder)


def whole(rank, world_size):
    """Of a whole state dict each rank takes its part, and one process resumes it; without masters,
    whose int16 torch's collectives do not carry.
    """
    options = StateDictOptions(full_state_dict=True)
    for dtype, asked in STORED:
        if asked.get("master_weights"):
            continue
        model = sharded(ALIGNED, dtype)
        optimizer = fusedopt.AdamW(model.parameters(), lr=0.1, **asked)
        train(model, optimizer, BEFORE)
        gathered = get_optimizer_state_dict(model, optimizer, options=options)
        again = sharded(ALIGNED, dtype)
        set_model_state_dict(again, get_model_state_dict(model, options=options), options=options)
        resumed = fusedopt.AdamW(again.parameters(), lr=0.2, **asked)
        set_optimizer_state_dict(again, resumed, copy.deepcopy(gathered), options=options)
        plain = Parameters(ALIGNED, dtype)
        plain.load_state_dict(get_model_state_dict(model, options=options))
        other = fusedopt.AdamW(plain.parameters(), lr=0.2, **asked)
        set_optimizer_state_dict(plain, other, copy.deepcopy(gathered))
        for one, its in ((model, optimizer), (again, resumed), (plain, other)):
            train(one, its, AFTER)
        assert_same(model, optimizer, again, resumed, f"whole {asked}")
        assert_same(model, optimizer, plain, other, f"whole into one process {asked}")


def whole_of_other_shards(rank, world_size):
    """A whole state dict of codes whose blocks belong to shards is refused, and changes nothing."""
    options = StateDictOptions(full_state_dict=True)
    model, plain = sharded(UNALIGNED, torch.float32), Parameters(UNALIGNED, torch.float32)
    optimizer, other = (fusedopt.AdamW(m.parameters(), state_bits=8) for m in (model, plain))
    train(model, optimizer, BEFORE)
    gathered = get_optimizer_state_dict(model, optimizer, options=options)
    before = copy.deepcopy(get_optimizer_state_dict(plain, other))
    with pytest.raises(ValueError, match=r"exp_avg_scale' has shape \(2, 1, \d+\) where"):
        set_optimizer_state_dict(plain, other, gathered)
    after = get_optimizer_state_dict(plain, other)
    assert after["param_groups"] == before["param_groups"]
    for name, states in before["state"].items():
        for key, state in states.items():
            assert torch.equal(after["state"][name][key], state), f"{name} {key}"


def converted(rank, world_size):
    """States of shards are converted in mid-training, as those of one process are."""
    dtype = torch.bfloat16
    model, plain = sharded(ALIGNED, dtype), Parameters(ALIGNED, dtype)
    optimizer, other = (fusedopt.AdamW(m.parameters(), lr=0.1) for m in (model, plain))
    steps = iter(range(20))
    for asked in ({"state_bits": 8}, {"state_bits": 16, "master_weights": True}, {"state_bits": 8}):
        for each in (optimizer, other):
            fusedopt.convert_states(each, **asked)
        step = next(steps)
        train(model, optimizer, [step])
        train(plain, other, [step])
        assert_same(model, optimizer, plain, other, asked)
    masters = zip(optimizer.master_params(), other.master_params(), strict=True)
    values = []
    for master, expected in masters:
        assert master.dtype == torch.float32
        assert torch.equal(master.full_tensor(), expected)
        values.append(expected + 1e-4)
    optimizer.load_master_params(values)  # each rank takes its part of the whole
    other.load_master_params(values)
    assert_same(model, optimizer, plain, other, "masters")
    optimizer.load_master_params(optimizer.master_params())
    assert_same(model, optimizer, plain, other, "masters, as they were")
    with pytest.raises(ValueError, match="value 0 is a DTensor"):
        other.load_master_params(optimizer.master_params())
    for each in (optimizer, other):
        fusedopt.to_float32_state(each)
    assert_same(model, optimizer, plain, other, "float32")
    with warnings.catch_warnings():  # a checkpoint in float32 is converted when it is loaded
        warnings.filterwarnings("ignore", message="the checkpoint's states")
        for one, its in ((model, optimizer), (plain, other)):
            saved = its.state_dict()
            its.__init__(one.parameters(), lr=0.1, state_bits=8)
            its.load_state_dict(saved)
    assert_same(model, optimizer, plain, other, "loaded from float32")
