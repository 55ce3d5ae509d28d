"""States that a step creates: what they begin with, who writes it, and when others see them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch

import forked
import fusedopt
from emulation import emulation
from fusedopt import _native
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import threads
from helpers import Guarded, bits, content, run_python, scaled_step, snapshot

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


@contextlib.contextmanager
def memory_full_of_nan():
    """Whatever torch allocates without writing to it holds NaN."""
    torch.use_deterministic_algorithms(True)  # of which this is a part
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def with_states_written_by_torch(optimizer_class):
    """The same optimizer, whose states hold what they begin with before the step sees them."""

    class Eager(optimizer_class):
        def _create_state(self, name, param, group):
            state = super()._create_state(name, param, group)
            if not isinstance(state, tuple):
                return state
            tensor, value = state
            return tensor.fill_(value)

    return Eager


def params_of(dtype):
    """Around blocks and cuts, in every kind of layout."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(n,) for n in (0, 1, 63, 255, 256, 257, 40_000)] + [(), (90, 101)]
    for shape in shapes:
        values = torch.randn(shape, generator=generator).to(dtype)
        grad = torch.randn(shape, generator=generator).to(dtype)
        yield values.clone(), grad
        if len(shape) == 2:
            yield values.clone(), grad.t().contiguous().t()
            yield values.t(), grad.t()
            memory = Guarded(2 * values.numel(), dtype)
            yield memory.view(shape, (2 * shape[1], 2)).copy_(values), grad


@pytest.mark.parametrize(
    ("engine", "scale"), [("cpu", None), ("cpu", 4.0), ("emulated", None)], ids=str
)
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_memory_that_holds_nothing_is_not_read(row, dtype, engine, scale):
    def run(optimizer_class):
        params = []
        for value, grad in params_of(dtype):
            params.append(torch.nn.Parameter(value))
            params[-1].grad = grad.clone(memory_format=torch.preserve_format)
        optimizer = optimizer_class(params, **options)
        for _ in range(2):
            scaled_step(optimizer, scale)
        return snapshot(optimizer)

    for options in row.options:
        expected = run(with_states_written_by_torch(row.optimizer))
        context = emulation() if engine == "emulated" else contextlib.nullcontext()
        with memory_full_of_nan(), threads(3), context:
            assert run(row.optimizer) == expected, options


def test_what_a_subclass_creates_is_taken_as_it_is():
    class Warm(fusedopt.SGD):
        def _create_state(self, name, param, group):
            return torch.full_like(param, 3.0)

    class From(fusedopt.SGD):
        def _initial_value(self, name, group):
            return 3.0

    for optimizer_class in (Warm, From):
        param = torch.nn.Parameter(torch.zeros(4))
        param.grad = torch.ones(4)
        optimizer_class([param], lr=1.0, momentum=0.5).step()
        assert param.tolist() == [-2.5] * 4


# What is no tensor


@pytest.mark.parametrize("made", [1.0, None, "state", (torch.ones(3), 0.0, 1), [torch.ones(3)]],
                         ids=repr)  # fmt: skip
@pytest.mark.parametrize("name", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_a_new_state_that_is_no_tensor_is_refused(count, name, made):
    class Odd(fusedopt.Adam):
        def _create_state(self, of, param, group):
            last = param is self.param_groups[0]["params"][-1]
            return made if of == name and last else super()._create_state(of, param, group)

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(count)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = Odd(params)
    with pytest.raises(
        TypeError, match=f"parameter {count - 1}: new state '{name}' is not a tensor but of class"
    ):
        optimizer.step()
    assert not optimizer.state
    assert all(param.tolist() == [1] * 3 for param in params)


def test_a_new_state_of_another_shape_or_without_a_number_is_refused():
    class Odd(fusedopt.SGD):
        made = (torch.ones(4), 0.0)

        def _create_state(self, name, param, group):
            return self.made

    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = Odd([param], momentum=0.9)
    with pytest.raises(RuntimeError, match=r"momentum_buffer has shape \(4,\)"):
        optimizer.step()
    Odd.made = (torch.ones(3), "zero")
    with pytest.raises(TypeError, match="must be real number"):
        optimizer.step()
    assert not optimizer.state
    assert param.tolist() == [1] * 3


# When


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_launch_that_fails_leaves_everything_as_it_was(row, steps):
    options = row.usual
    params = [torch.nn.Parameter(torch.ones(5)) for _ in range(3)]
    optimizer = row.optimizer(params, **options)
    for param in params:
        param.grad = torch.ones(5)
    with emulation():
        for _ in range(steps):
            optimizer.step()
    before, states = snapshot(optimizer), dict(optimizer.state)
    with emulation(fails=True), pytest.raises(RuntimeError, match="the launch fails"):
        optimizer.step()
    assert snapshot(optimizer) == before
    assert optimizer.state == states
    with emulation():
        optimizer.step()


def test_states_are_in_torchs_order():
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    ours, theirs = (lib.Adam([param], amsgrad=True) for lib in (fusedopt, torch.optim))
    ours.step()
    theirs.step()
    assert list(ours.state[param]) == list(theirs.state[param])


def test_a_state_that_an_option_adds_joins_those_that_are_there():
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    states = optimizer.state[param]
    had = dict(states)
    optimizer.param_groups[0]["amsgrad"] = True
    with memory_full_of_nan():
        optimizer.step()
    assert optimizer.state[param] is states
    assert all(states[name] is tensor for name, tensor in had.items())
    assert content(states["max_exp_avg_sq"]) == content(states["exp_avg_sq"])


# Where and by whom


def test_a_new_optimizer_in_a_forked_child():
    """torch's threads are gone there, and its own passes over large tensors would wait for them."""
    run_python("""
import os, signal, torch, fusedopt
from fusedopt.checking.rows import ROWS
torch.set_num_threads(2)
param = torch.nn.Parameter(torch.ones(3_000_000)); param.grad = torch.ones(3_000_000)
torch.ones(3_000_000).add_(1)
ROWS[0].optimizer([param])  # torch imports more when it makes the first one
for row in ROWS:
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        optimizer = row.optimizer([param], **row.usual)
        optimizer.step()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, row.name
""")


def huge_pages_of(tensor):
    """How many bytes of the mapping that holds a tensor are on huge pages."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    with open("/proc/self/smaps") as smaps:
        for line in smaps:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                begin, end = (int(bound, 16) for bound in first.split("-"))
                inside = begin <= address < end
            elif inside and line.startswith("AnonHugePages:"):
                return int(line.split()[1]) * 1024
    return 0


def huge_pages_are_there():
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.exists() and "[madvise]" in path.read_text()


@pytest.mark.skipif(not huge_pages_are_there(), reason="the system gives no huge pages")
@pytest.mark.parametrize("wanted", [True, False])
def test_large_states_are_on_huge_pages_if_wanted(wanted):
    param = torch.nn.Parameter(torch.ones(10_000_000))
    param.grad = torch.ones(10_000_000)
    optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.9)
    _native.use_huge_pages(wanted)
    try:
        optimizer.step()
    finally:
        _native.use_huge_pages(False)
    buffer = optimizer.state[param]["momentum_buffer"]
    assert (huge_pages_of(buffer) > buffer.nbytes // 2) == wanted
    assert np.array_equal(bits(buffer), bits(param.grad))


def test_huge_pages_are_asked_for_by_environment():
    code = """
from fusedopt.info import collect
assert collect()["huge pages"].startswith("asked for;")
"""
    forked.run_python(code, FUSEDOPT_HUGE_PAGES="1")
