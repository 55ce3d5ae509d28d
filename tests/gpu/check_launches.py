"""A step on the GPU is one kernel, allocates nothing and waits for nothing."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from gpu_helpers import GPU, LARGEST_CASES, gpu_activity, mixed_tensors, optimizer_on

ADAM = next(case for case in CASES if case.row.name == "Adam")

# Large enough for the tables of a step to be of every size.
COUNTS = [1, 40, 300, 1000, 3000]


def many_tensors(count, **more):
    """An optimizer of so many small tensors, which has its states."""
    torch.manual_seed(0)
    optimizer = optimizer_on(GPU, ADAM, [torch.randn(1 + i % 50) for i in range(count)], **more)
    for _ in range(3):
        optimizer.step()
    return optimizer


def many_groups(count):
    """An optimizer of so many groups with rates of their own."""
    groups = []
    for index in range(count):
        param = torch.nn.Parameter(torch.randn(33, device=GPU))
        param.grad = torch.ones_like(param)
        groups.append({"params": [param], "lr": 1e-3 * (index + 1), "weight_decay": index % 2})
    optimizer = fusedopt.AdamW(groups)
    for _ in range(3):
        optimizer.step()
    return optimizer


def mixed_options(row, **more):
    """All options of a rule in all dtypes."""
    groups = []
    for options in row.options:
        params = [torch.nn.Parameter(tensor.to(GPU)) for tensor in mixed_tensors()]
        for param in params:
            param.grad = torch.ones_like(param)
        groups.append({"params": params, **options, **more})
    optimizer = row.optimizer(groups)
    for _ in range(3):
        optimizer.step()
    return optimizer


def assert_one_kernel_a_step(optimizer, folder):
    def three_steps():
        for _ in range(3):
            optimizer.step()

    ran = gpu_activity(three_steps, folder)
    assert len(ran["kernel"]) == 3, ran
    assert all("step_kernel" in name for name in ran["kernel"]), ran
    assert len(ran["gpu_memcpy"]) in (0, 3), ran  # the table, where there are many tensors
    assert not ran["gpu_memset"], ran
    return len(ran["gpu_memcpy"]) // 3


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("count", COUNTS)
def test_one_kernel_for_any_number_of_tensors(count, capturable, tmp_path):
    copies = assert_one_kernel_a_step(many_tensors(count, capturable=capturable), tmp_path)
    assert count > 100 or copies == 0


@pytest.mark.parametrize("count", [2, 50, 500])
def test_one_kernel_for_any_number_of_groups(count, tmp_path):
    assert_one_kernel_a_step(many_groups(count), tmp_path)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_one_kernel_for_all_options_and_dtypes(row, capturable, tmp_path):
    assert_one_kernel_a_step(mixed_options(row, capturable=capturable), tmp_path)


def test_one_kernel_for_layouts_of_every_kind(tmp_path):
    values = [
        torch.randn(33, 17, device=GPU).t(),
        torch.randn(4, 3, 5, 7, device=GPU).to(memory_format=torch.channels_last),
        torch.randn(40, 40, device=GPU)[:, ::3],
    ]
    params = [torch.nn.Parameter(value) for value in values]
    for param in params:
        param.grad = torch.ones(1, device=GPU).expand(param.shape)
    optimizer = fusedopt.RMSprop(params, momentum=0.9, centered=True)
    for _ in range(3):
        optimizer.step()
    assert_one_kernel_a_step(optimizer, tmp_path)


@contextlib.contextmanager
def synchronisation_refused():
    """torch raises at its own synchronising operations inside the context."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("count", COUNTS)
def test_no_allocation_and_no_synchronisation_in_the_steady_state(count, capturable):
    optimizer = many_tensors(count, capturable=capturable)
    # As many steps in flight as below, so that all the memory that they need is there.
    torch.cuda._sleep(700_000_000)
    for _ in range(50):
        optimizer.step()
    torch.cuda.synchronize()
    allocations = torch.cuda.memory_stats()["allocation.all.allocated"]
    free, _ = torch.cuda.mem_get_info()
    with synchronisation_refused():
        for _ in range(50):
            optimizer.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == allocations
    assert torch.cuda.mem_get_info()[0] == free


@pytest.mark.parametrize("case", LARGEST_CASES, ids=str)
def test_no_rule_synchronises(case):
    lr = torch.tensor(0.01, device=GPU)
    optimizer = optimizer_on(GPU, case, mixed_tensors(), lr=lr, capturable=True)
    optimizer.step()
    with synchronisation_refused():
        for _ in range(3):
            optimizer.step()
            lr.mul_(0.5)


@pytest.mark.parametrize("capturable", [False, True], ids=["", "capturable"])
@pytest.mark.parametrize("count", COUNTS)
def test_a_step_returns_ahead_of_the_work_before_it(count, capturable):
    """Queued behind a kernel of some tenths of a second, while it still runs."""
    optimizer = many_tensors(count, capturable=capturable)
    torch.cuda._sleep(1000)  # loads its kernel
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(700_000_000)
    done.record()
    optimizer.step()
    optimizer.step()
    assert not done.query()
    torch.cuda.synchronize()


def test_a_first_step_does_not_wait_either():
    """It creates states, which allocates but need not wait."""
    optimizers = [
        optimizer_on(GPU, case, [torch.randn(10, dtype=dtype) for dtype in DTYPES])
        for case in LARGEST_CASES
        for _ in range(2)
    ]
    for optimizer in optimizers[::2]:
        optimizer.step()
    torch.cuda._sleep(1000)
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(700_000_000)
    done.record()
    for optimizer in optimizers[1::2]:
        optimizer.step()
    assert not done.query()
    torch.cuda.synchronize()
