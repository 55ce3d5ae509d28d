"""Who sees a step: hooks and the profiler, once; torch.compile not at all."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS
from helpers import bits


def parameter():
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    return param


def derived(base):
    """A class as users write it, and one derived from that."""

    class Derived(base):
        def step(self, closure=None):
            return super().step(closure)

    class Twice(Derived):
        def step(self, closure=None):
            return super().step(closure)

    return Derived, Twice


def watch(optimizer, calls):
    """Hooks of every kind, that note their calls."""
    from torch.optim.optimizer import (
        register_optimizer_step_post_hook,
        register_optimizer_step_pre_hook,
    )

    return [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]


ONCE = ["global pre", "pre", "post", "global post"]


def events_of(optimizer):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    return {e.key: e.count for e in profile.key_averages() if e.key.startswith("Optimizer.step#")}


@pytest.mark.parametrize("plain_object_first", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_subclass_that_calls_super_is_seen_once(row, depth, scheduled, plain_object_first):
    cls = derived(row.optimizer)[depth]
    for base in reversed(cls.__mro__[1 : depth + 2] if plain_object_first else ()):
        base([parameter()])
    optimizer = cls([param := parameter()])
    twin = row.optimizer([expected := parameter()])
    if scheduled:
        torch.optim.lr_scheduler.StepLR(optimizer, 5)
    calls = []
    handles = watch(optimizer, calls)
    try:
        optimizer.step()
        assert calls == ONCE
        assert events_of(optimizer) == {f"Optimizer.step#{cls.__name__}.step": 1}
    finally:
        for handle in handles:
            handle.remove()
    assert events_of(optimizer) == {f"Optimizer.step#{cls.__name__}.step": 1}
    optimizer.step()
    assert calls == 2 * ONCE
    for _ in range(4):
        twin.step()
    assert (bits(param) == bits(expected)).all()


def test_a_subclass_that_steps_another_optimizer():
    """Each has its own hooks."""
    other = fusedopt.SGD([parameter()])

    class Both(fusedopt.Adam):
        def step(self, closure=None):
            other.step()
            return super().step(closure)

    optimizer = Both([parameter()])
    calls = []
    other.register_step_pre_hook(lambda *_: calls.append("other"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("outer"))
    optimizer.register_step_post_hook(lambda *_: other.step())
    optimizer.step()
    assert calls == ["outer", "other", "other"]


def test_a_step_that_raises_is_over():
    class Failing(fusedopt.SGD):
        def step(self, closure=None):
            super().step(closure)
            raise ZeroDivisionError

    optimizer = Failing([parameter()])
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    for count in (1, 2):
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
        assert len(calls) == count
    fusedopt.SGD.step(optimizer)
    assert len(calls) == 3


def test_converted_optimizers_are_seen_once():
    optimizer = torch.optim.Adam([parameter()])
    torch.optim.lr_scheduler.StepLR(optimizer, 5)
    fusedopt.from_torch(optimizer)
    calls = []
    for handle in watch(optimizer, calls):
        optimizer.step()
        handle.remove()
    assert calls.count("global post") == 4
    assert calls.count("global pre") == 1


def compiled_steps(optimizer, scheduler):
    """Results of a compiled function that steps, and how often the compiler had to begin anew."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()

    def train(x):
        y = x * 2
        optimizer.step()
        return y + 1

    compiled = torch.compile(train, backend="eager")
    for step in range(5):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.full_like(param, step + 1.0)
        assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 3.0))
        if scheduler is not None:
            scheduler.step()
    return sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("cls", [fusedopt.SGD, fusedopt.Adam, derived(fusedopt.AdamW)[1]])
def test_a_compiled_function_breaks_once_at_a_step(cls, scheduled):
    def make():
        optimizer = cls([param := torch.nn.Parameter(torch.ones(4))], lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2) if scheduled else None
        return param, optimizer, scheduler

    param, optimizer, scheduler = make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled_steps(optimizer, scheduler) == (1, 2)
    expected, optimizer, scheduler = make()
    for step in range(5):
        expected.grad = torch.full_like(expected, step + 1.0)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    assert (bits(param) == bits(expected)).all()


def test_torchs_compiler_is_not_imported():
    code = "import sys, fusedopt; print('torch._dynamo' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
