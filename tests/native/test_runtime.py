"""Processes and threads: instruction sets by environment, one OpenMP runtime, the GIL, forks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

import forked
import fusedopt
from fusedopt import _native
from fusedopt.checking.verify import threads
from helpers import ISAS, bits


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_selected(isa, **environment):
    """An import with an environment chooses this instruction set."""
    code = f"import fusedopt; assert fusedopt._native.selected_isa() == {isa!r}"
    forked.run_python(code, **environment)


@pytest.mark.parametrize("name", ISAS)
def test_environment_variable_forces_an_isa(name):
    assert_selected(name, FUSEDOPT_ISA=name)


@pytest.mark.parametrize("spelling", [str.upper, " {} ".format, "\t{}\n".format])
def test_environment_variable_may_be_spelt_otherwise(spelling):
    assert_selected(ISAS[0], FUSEDOPT_ISA=spelling(ISAS[0]))


@pytest.mark.parametrize("name", ["sse9", "avx", "baseline avx2"])
def test_unknown_isa_raises_with_those_available(name):
    code = f"""
try:
    import fusedopt
except ValueError as error:
    assert "FUSEDOPT_ISA: instruction set '{name}'" in str(error), error
    assert "{", ".join(ISAS)}" in str(error), error
else:
    raise AssertionError
"""
    forked.run_python(code, FUSEDOPT_ISA=name)
    with pytest.raises(ValueError, match=", ".join(ISAS)):
        _native.select_isa(name)


@pytest.mark.parametrize("unset", ["", " "])
def test_the_fastest_isa_is_the_default(unset):
    assert_selected(ISAS[-1], FUSEDOPT_ISA=unset)


def test_the_fastest_isa_is_the_default_without_the_variable():
    environment = {k: v for k, v in os.environ.items() if k != "FUSEDOPT_ISA"}
    out = subprocess.run(
        [sys.executable, "-c", "import fusedopt; print(fusedopt._native.selected_isa())"],
        env=environment, cwd="/", capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert out.strip() == ISAS[-1]


@pytest.mark.parametrize("order", ["torch, fusedopt", "fusedopt, torch"])
def test_one_openmp_runtime(order):
    code = f"""
import {order}
p = torch.nn.Parameter(torch.ones(200_000)); p.grad = torch.ones(200_000)
torch.set_num_threads(2)
fusedopt.Adam([p]).step()
print({{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}})
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    libraries = re.findall(r"'([^']*lib[gi]?omp[^']*)'", result.stdout)
    assert len(libraries) == 1, result.stdout


def test_set_num_threads_is_obeyed():
    """By a large step in each Python thread; torch has started no thread of its own before.

    torch keeps one number for the process; OpenMP alone would know it in one thread only.
    """
    code = """
import os, threading, time, torch, fusedopt
torch.set_num_threads(1)
p = torch.nn.Parameter(torch.ones(2_000_000)); p.grad = torch.ones(2_000_000)
optimizer = fusedopt.SGD([p])
def started():
    optimizer.step(); optimizer.step()
    return len(os.listdir("/proc/self/task")) - before
before = len(os.listdir("/proc/self/task"))
counts = []
thread = threading.Thread(target=lambda: counts.append(started() - 1))
thread.start(); thread.join()
while len(os.listdir("/proc/self/task")) > before:  # the system's thread ends after Python's
    time.sleep(0.01)
for count in (1, 2, 4):
    torch.set_num_threads(count)
    counts.append(started())
print(counts)
"""
    result = run_python(code)
    assert result.stdout.strip() == "[0, 0, 1, 3]", result.stdout + result.stderr


def test_step_in_a_forked_child_after_a_step_of_the_parent():
    code = """
import os, signal, torch, fusedopt
torch.set_num_threads(2)
p = torch.nn.Parameter(torch.ones(500_000)); p.grad = torch.ones(500_000)
optimizer = fusedopt.SGD([p], lr=0.25)
optimizer.step()
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    optimizer.step()
    os._exit(0 if p[::1000].tolist() == [0.5] * 500 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    result = run_python(code)
    assert result.stdout.strip() == "0", result.stdout + result.stderr


def test_the_gil_is_released_while_kernels_run():
    param = torch.nn.Parameter(torch.ones(30_000_000))
    param.grad = torch.ones(30_000_000)
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    ticks = []
    done = threading.Event()

    def count():
        while not done.wait(0.0001):
            ticks.append(None)

    counter = threading.Thread(target=count)
    with threads(1):
        counter.start()
        ticks_before = len(ticks)
        optimizer.step()  # some tens of milliseconds
        ticks_after = len(ticks)
    done.set()
    counter.join()
    assert ticks_after > ticks_before + 5


def test_optimizers_in_several_python_threads():
    def train(seed):
        generator = torch.Generator().manual_seed(seed)
        param = torch.nn.Parameter(torch.randn(40_000, generator=generator))
        optimizer = fusedopt.Adam([param])
        for _ in range(20):
            param.grad = torch.randn(40_000, generator=generator)
            optimizer.step()
        results[seed] = bits(param)

    results = {}
    workers = [threading.Thread(target=train, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    together = dict(results)
    for seed in range(4):
        train(seed)
        assert np.array_equal(results[seed], together[seed])


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_step_allocates_nothing_that_grows_with_the_model():
    code = """
import os, resource, torch, fusedopt
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
n = 16_000_000
for dtype, shape in ((torch.float32, (n,)), (torch.bfloat16, (n,)), (torch.float32, (4000, 4000))):
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    if len(shape) == 2:
        p.grad = torch.ones(shape, dtype=dtype).t()
    else:
        p.grad = torch.ones(shape, dtype=dtype)
    optimizer = fusedopt.Adam([p])
    fusedopt.Adam([torch.nn.Parameter(torch.ones(1))]).step()
    optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": torch.ones_like(p),
                          "exp_avg_sq": torch.ones_like(p)}
    before = peak()
    optimizer.step()
    print(peak() - before)
    del p, optimizer
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert max(map(int, result.stdout.split())) < 4_000_000, result.stdout


def test_no_leak_over_many_steps():
    params = [torch.nn.Parameter(torch.ones(10)) for _ in range(20)]
    for param in params:
        param.grad = torch.ones(10)
    optimizer = fusedopt.Adam(params)
    for _ in range(500):
        optimizer.step()
    references = [sys.getrefcount(p) for p in params], [sys.getrefcount(p.grad) for p in params]
    before = resident_bytes()
    for _ in range(5000):
        optimizer.step()
    assert resident_bytes() - before < 1_000_000
    assert references == (
        [sys.getrefcount(p) for p in params],
        [sys.getrefcount(p.grad) for p in params],
    )


def test_import_needs_torch_and_numpy_only():
    code = """
import sys
class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("rich", "typer", "sklearn", "pytest", "scipy"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import fusedopt, fusedopt.reference, fusedopt.checking.rows
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
