"""Counts past 2^24, where float32 has no next one; torch's counts stop there, ours go on."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import count_mismatches, to_array
from helpers import bits, snapshot

LAST = 2**24  # the largest count of a float32 without a gap below it
ONE = np.ones(1)
COUNTING = [row for row in ROWS if "step" in row.reference(ONE, ONE, {})[1]]
# With these, the scalars of one step are not those of the next even after so many.
OPTIONS = {"betas": (0.9, 1 - 1e-9), "lr_decay": 1.0}


def options_of(row):
    known = inspect.signature(row.optimizer).parameters
    return {name: value for name, value in OPTIONS.items() if name in known}


def after(row, count, dtype=torch.float32, count_dtype=torch.float32, **options):
    """An optimizer that has made `count` steps, by its state, and the gradient of the next."""
    generator = torch.Generator().manual_seed(0)
    param = torch.nn.Parameter(torch.randn(40, generator=generator).to(dtype))
    optimizer = row.optimizer([param], **options_of(row), **options)
    param.grad = torch.randn(40, generator=generator).to(dtype)
    optimizer.step()
    optimizer.state[param]["step"] = torch.tensor(count, dtype=count_dtype)
    return optimizer, param


@pytest.mark.parametrize("count", [LAST - 2, LAST - 1, LAST, LAST + 2, 2 * LAST])
@pytest.mark.parametrize("row", COUNTING, ids=lambda row: row.name)
def test_three_steps_count_on_as_the_reference(row, count):
    optimizer, param = after(row, count)
    state = optimizer.state[param]
    expected = (
        to_array(param),
        {
            name: count if name == "step" else to_array(value).copy()
            for name, value in state.items()
        },
    )
    options = row.reference_options(optimizer.param_groups[0])
    for step in range(1, 4):
        optimizer.step()
        expected = row.reference(expected[0], to_array(param.grad), expected[1], **options)
        assert state["step"].item() == count + step == expected[1]["step"]
        assert state["step"].dtype == (torch.float32 if count + step <= LAST else torch.float64)
        assert state["step"].shape == ()
        assert count_mismatches(to_array(param), expected[0]) == 0
        for name in set(state) - {"step"}:
            assert count_mismatches(to_array(state[name]), expected[1][name]) == 0


def test_the_scalars_differ_from_step_to_step():
    """What a count that stands still would get wrong."""
    row = next(row for row in COUNTING if row.name == "Adam")
    steps = []
    for count in (LAST, LAST + 1000):
        optimizer, param = after(row, count, torch.float64)
        optimizer.step()
        steps.append(bits(param))
    assert not np.array_equal(*steps)


@pytest.mark.parametrize(
    ("dtype", "last"), [(torch.int32, 2**31 - 1), (torch.int64, 2**40), (torch.float64, 2**40)],
    ids=str,
)  # fmt: skip
def test_counts_of_other_types(dtype, last):
    optimizer, param = after(COUNTING[0], last - 1, count_dtype=dtype)
    for step in range(3):
        optimizer.step()
        assert optimizer.state[param]["step"].item() == last + step
    expected = torch.float64 if dtype == torch.int32 else dtype
    assert optimizer.state[param]["step"].dtype == expected


def test_a_refused_or_skipped_step_widens_nothing():
    optimizer, _ = after(COUNTING[0], LAST)
    bad = torch.nn.Parameter(torch.ones(2))
    bad.grad = torch.ones(2).to_sparse()
    optimizer.add_param_group({"params": [bad]})
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert snapshot(optimizer) == before
    bad.grad = None
    before = snapshot(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
    optimizer.step()
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("torch_options", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("name", ["Adagrad", "Adam", "AdamW"])
def test_the_checkpoint_loads_into_torch_and_back(name, torch_options):
    row = next(row for row in COUNTING if row.name == name)
    optimizer, param = after(row, LAST - 1)
    for _ in range(3):
        optimizer.step()
    theirs = torch.nn.Parameter(param.detach().clone())
    theirs.grad = param.grad.clone()
    other = row.torch_optimizer([theirs], **torch_options)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    checkpoint["param_groups"][0].update({"foreach": None, "fused": None, **torch_options})
    other.load_state_dict(checkpoint)
    other.step()
    # torch loads the counts of its fused optimizers as float32, which has no LAST + 3.
    assert other.state[theirs]["step"].item() == LAST + (4 if "fused" in torch_options else 3)
    optimizer.step()
    assert torch.allclose(theirs, param, rtol=1e-5, atol=0)
    checkpoint = other.state_dict()
    checkpoint["param_groups"][0].update(foreach=None, fused=None)
    optimizer.load_state_dict(checkpoint)
    before = optimizer.state[param]["step"].item()
    optimizer.step()
    assert optimizer.state[param]["step"].item() == before + 1


def test_torchs_own_count_stops():
    """If this fails, torch has changed, and what it does now should be considered."""
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = torch.optim.Adam([param])
    optimizer.step()
    optimizer.state[param]["step"].fill_(LAST)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == LAST


@pytest.mark.parametrize("count", [LAST - 1, LAST, LAST + 4])
def test_a_device_that_counts_stays_at_the_largest_count(count):
    """A captured graph has the address of the count, so no other tensor can take its place."""
    from emulation import emulation

    optimizer, param = after(COUNTING[0], count)
    optimizer.param_groups[0]["capturable"] = True
    step_count = optimizer.state[param]["step"]
    with emulation():
        for _ in range(3):
            optimizer.step()
    assert optimizer.state[param]["step"] is step_count
    assert step_count.dtype == torch.float32
    assert step_count.item() == max(count, LAST)


def test_fused_counts_on_the_host_go_on():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    optimizer = fusedopt.Adam([param], fused=True)
    optimizer.step()
    optimizer.state[param]["step"].fill_(LAST)
    optimizer.step()
    assert optimizer.state[param]["step"].item() == LAST + 1
