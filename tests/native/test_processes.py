"""What goes on around a step: threads, processes, signals, the end of the interpreter, leaks."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading

import numpy as np
import pytest
import torch

import forked
import fusedopt
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import threads
from helpers import bits, run_python, snapshot

# Threads


NUMEL = 300_000  # enough for several threads, of a step and of a norm
EVERYTHING = {"l1": 0.01, "ema_decay": 0.9, "max_grad_norm": 1.0}


def train(row, dtype, seed, options):
    """The bits of parameters and states after some steps, and of the average in its place."""
    generator = torch.Generator().manual_seed(seed)
    param = torch.nn.Parameter(torch.randn(NUMEL, generator=generator).to(dtype))
    optimizer = row.optimizer([param], **options)
    for _ in range(4):
        param.grad = torch.randn(NUMEL, generator=generator).to(dtype)
        optimizer.step()
    with optimizer.averaged() if options else contextlib.nullcontext():
        found = bits(param).copy()
    return [found, bits(param), *(bits(state) for state in optimizer.state[param].values())]


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["", "everything"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_optimizer_at_once(dtype, options):
    """One Python thread for each, all of them with two OpenMP threads."""
    results = {}

    def work(seed):
        results[seed] = train(ROWS[seed], dtype, seed, options)

    with threads(2):
        workers = [threading.Thread(target=work, args=(seed,)) for seed in range(len(ROWS))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    for seed, row in enumerate(ROWS):
        for ours, expected in zip(results[seed], train(row, dtype, seed, options), strict=True):
            assert np.array_equal(ours, expected), row.name


def test_one_optimizer_whose_state_another_thread_replaces():
    """A step holds the tensors that it reads, whatever happens to the dictionaries meanwhile."""
    param = torch.nn.Parameter(torch.ones(300_000))
    param.grad = torch.ones(300_000)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    state = optimizer.state[param]
    done = threading.Event()

    def replace():
        while not done.is_set():
            state["exp_avg"] = torch.zeros(300_000)
            param.grad = torch.ones(300_000)

    worker = threading.Thread(target=replace)
    worker.start()
    for _ in range(200):
        optimizer.step()
    done.set()
    worker.join()
    assert state["step"].item() == 201
    assert torch.isfinite(param).all()


# Processes


def test_hogwild():
    """Two processes train one model in shared memory, each with an optimizer of its own."""
    forked.run_python("""
import torch, fusedopt
import torch.multiprocessing as multiprocessing

def loss_of(model, inputs):
    return torch.nn.functional.mse_loss(model(inputs), inputs.sum(1, keepdim=True))

def work(model, seed):
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    optimizer = fusedopt.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        loss_of(model, torch.randn(16, 8, generator=generator)).backward()
        optimizer.step()

torch.manual_seed(0)
torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
model.share_memory()
inputs = torch.randn(256, 8)
before = loss_of(model, inputs).item()
context = multiprocessing.get_context("fork")
workers = [context.Process(target=work, args=(model, seed)) for seed in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join(60)
assert [worker.exitcode for worker in workers] == [0, 0]
assert loss_of(model, inputs).item() < before / 10
""")


def test_the_interpreter_ends_while_a_daemon_thread_steps():
    """A thread that comes back from a kernel to an interpreter that is ending does no harm.

    One long step, so that this is where the thread is: torch's own functions (Tensor.is_neg, for
    one) abort the process if it happens to them, as they do in torch's optimizers.
    """
    code = """
import sys, threading, time, torch, fusedopt
torch.set_num_threads(1)
def work():
    param = torch.nn.Parameter(torch.ones(20_000_000)); param.grad = torch.ones(20_000_000)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    stepping.set()
    optimizer.step()
    time.sleep(60)
stepping = threading.Event()
threading.Thread(target=work, daemon=True).start()
stepping.wait()
time.sleep(0.02)
class Slow:
    def __del__(self):
        time.sleep(0.3)  # the thread comes back meanwhile
sys.slow = Slow()
"""
    for _ in range(3):
        result = run_python(code)
        assert result.stderr == ""


# Signals


class Interrupted(torch.nn.Parameter):
    """A parameter whose n-th hashing from now on raises what Ctrl-C would raise there."""

    left = 0

    def __hash__(self):
        cls = Interrupted
        cls.left -= 1
        if cls.left == 0:
            raise KeyboardInterrupt
        return super().__hash__()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_interrupted_first_step_is_done_or_not_begun(row):
    """Wherever Python code runs inside of a step, one that creates its states."""
    options = {"momentum": 0.9, "dampening": 0.5} if row.name == "SGD" else {}

    def after_step(interrupt_at):
        Interrupted.left = 0
        params = [Interrupted(torch.full((3,), float(i))) for i in range(3)]
        for param in params:
            param.grad = torch.ones(3)
        optimizer = row.optimizer(params, **options)
        before = snapshot(optimizer)
        Interrupted.left = interrupt_at
        interrupted = False
        try:
            optimizer.step()
        except KeyboardInterrupt:
            interrupted = True
        Interrupted.left = 0
        return before, snapshot(optimizer), interrupted

    _, done, _ = after_step(0)
    interrupt_at, interrupted = 0, True
    while interrupted:
        interrupt_at += 1
        before, after, interrupted = after_step(interrupt_at)
        assert after in (before, done), interrupt_at
    assert after == done
    assert interrupt_at > 1 or row.name == "Adagrad"  # whose constructor creates its states


def test_ctrl_c_at_any_time_leaves_whole_steps():
    """As many steps as the counts say, of every parameter, as integers; and it goes on."""
    result = run_python("""
import os, random, signal, threading, time, torch, fusedopt

def make():
    params = [torch.nn.Parameter(torch.full((n,), float(n))) for n in (3, 50_000, 40_000, 7)]
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    return params, fusedopt.Adam(params)

armed = False
def handler(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGINT, handler)

def interrupt():
    while not done:
        time.sleep(random.random() * 0.002)
        os.kill(os.getpid(), signal.SIGINT)

torch.set_num_threads(2)
done = False
interrupts = 0
sender = threading.Thread(target=interrupt, daemon=True)
sender.start()
while interrupts < 30:
    params, optimizer = make()
    begun = 0
    while begun < 20:
        try:
            armed = True
            while begun < 20:
                begun += 1
                optimizer.step()
            armed = False
        except KeyboardInterrupt:
            interrupts += 1
    optimizer.step()
    counts = {optimizer.state[param]["step"].item() for param in params}
    assert len(counts) == 1, counts
    expected, reference = make()
    for _ in range(int(counts.pop())):
        reference.step()
    assert all(map(torch.equal, params, expected))
done = True
""")
    assert result.stderr == ""


# Leaks


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def growth(step, objects, repetitions):
    """By how many bytes and references a step makes the process grow, once it has run often."""
    for _ in range(repetitions // 10):
        step()
    gc.collect()  # what earlier tests left holds references, too
    before = resident_bytes(), [sys.getrefcount(o) for o in objects()]
    for _ in range(repetitions):
        step()
    after = resident_bytes(), [sys.getrefcount(o) for o in objects()]
    return after[0] - before[0], [a - b for a, b in zip(after[1], before[1], strict=True)]


def tiny(**options):
    param = torch.nn.Parameter(torch.ones(2))
    param.grad = torch.ones(2)
    return param, fusedopt.Adam([param], amsgrad=True, **options)


def assert_no_growth(step, objects, repetitions):
    grown, references = growth(step, objects, repetitions)
    assert grown < 500_000
    # None's count moves with whatever the interpreter itself does.
    assert all(abs(count) < 20 for count in references), references


def test_no_leak_over_a_hundred_thousand_steps():
    param, optimizer = tiny()
    assert_no_growth(
        optimizer.step,
        lambda: [None, param, param.grad, *optimizer.state[param].values(), optimizer.step],
        100_000,
    )
    assert optimizer.state[param]["step"].item() == 110_000


@pytest.mark.parametrize("kind", ["sparse", "option", "state"])
def test_no_leak_where_steps_are_refused(kind):
    param, optimizer = tiny()
    optimizer.step()
    if kind == "sparse":
        param.grad = torch.ones(2).to_sparse()
    elif kind == "option":
        optimizer.param_groups[0]["lr"] = "fast"
    else:
        optimizer.state[param]["exp_avg"] = torch.ones(3)

    def step():
        with pytest.raises((RuntimeError, TypeError)):
            optimizer.step()

    assert_no_growth(
        step, lambda: [None, param, param.grad, *optimizer.state[param].values()], 5_000
    )


def test_no_leak_where_states_are_new():
    param, optimizer = tiny()

    def step():
        optimizer.state.clear()
        optimizer.step()

    assert_no_growth(step, lambda: [None, param, param.grad], 10_000)


def test_no_leak_where_counts_are_widened_and_gradients_negated():
    param, optimizer = tiny()
    param.grad = torch._neg_view(torch.ones(2))
    optimizer.step()
    state = optimizer.state[param]
    step_count = torch.tensor(2.0**24)

    def step():
        state["step"] = step_count
        optimizer.step()

    assert_no_growth(step, lambda: [None, param, param.grad, step_count], 10_000)
