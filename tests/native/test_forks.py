"""Steps in forked processes, where OpenMP's threads are gone: on threads of the step's own."""

from __future__ import annotations

import os
import subprocess

from helpers import run_python


def test_steps_in_forked_children_of_forked_children():
    """Each process steps with what is there; the first goes on with the threads that it had."""
    run_python("""
import os, signal, torch, fusedopt
torch.set_num_threads(4)
param = torch.nn.Parameter(torch.ones(500_000)); param.grad = torch.ones(500_000)
optimizer = fusedopt.Adam([param], lr=0.25)
optimizer.step()

def fork(generations):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        optimizer.step()
        assert optimizer.state[param]["step"].item() == 5 - generations
        if generations > 1:
            fork(generations - 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

fork(3)
optimizer.step()
assert optimizer.state[param]["step"].item() == 2
""")


def test_step_where_the_package_is_imported_in_a_forked_child():
    """Of a parent whose threads of torch are gone there, and who has never heard of the package."""
    run_python("""
import os, signal, torch
torch.set_num_threads(2)
torch.ones(8_000_000).add_(1)
param = torch.nn.Parameter(torch.ones(4_000_000)); param.grad = torch.ones(4_000_000)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    import fusedopt
    fusedopt.SGD([param], lr=0.5).step()
    os._exit(0 if param[::1000].tolist() == [0.5] * 4000 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""")


# A large step, whose threads another thread counts from outside.
LARGE_STEP = """
import os, resource, signal, threading, time, torch, fusedopt

def count_threads(step):
    # The largest number of threads that step() adds to the process.
    counts, done = [], threading.Event()
    def look():
        while not done.is_set():
            counts.append(len(os.listdir("/proc/self/task")))
    watcher = threading.Thread(target=look)
    before = len(os.listdir("/proc/self/task")) + 1
    watcher.start()
    step()
    done.set()
    watcher.join()
    return max(counts) - before

def in_a_child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(90)
        work()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, status

def assert_equal(a, b):
    # Not torch.equal, which waits for the threads that a forked child has not.
    assert (a.detach().numpy() == b.detach().numpy()).all()

def make(numel):
    param = torch.nn.Parameter(torch.linspace(-1, 1, numel)); param.grad = param.detach() * 3
    optimizer = fusedopt.Adam([param])
    optimizer.step()
    return param, optimizer
"""


def test_a_forked_child_steps_on_several_threads_where_that_pays():
    run_python(f"""
{LARGE_STEP}
torch.set_num_threads(1)
expected, reference = make(5 * 2**20)
for _ in range(5):
    reference.step()
torch.set_num_threads(4)
param, optimizer = make(5 * 2**20)
small, optimizer_of_small = make(2**20)
def work():
    added = count_threads(lambda: [optimizer_of_small.step() for _ in range(20)])
    assert added == 0, added
    added = count_threads(lambda: [optimizer.step() for _ in range(5)])
    assert 0 < added < 4, added
    while len(os.listdir("/proc/self/task")) > 1:  # they end with the step, the watcher soon
        time.sleep(0.01)
    assert_equal(param, expected)
in_a_child(work)
""")


def test_a_forked_child_measures_on_several_threads_where_that_pays():
    run_python(f"""
{LARGE_STEP}
torch.set_num_threads(4)
grad = torch.linspace(-1, 1, 9 * 2**20)
expected = fusedopt.get_total_norm([grad])
def work():
    norms = []
    added = count_threads(
        lambda: [norms.append(fusedopt.get_total_norm([grad])) for _ in range(20)])
    assert 0 < added < 4, added
    assert norms == [expected] * 20
in_a_child(work)
""")


def test_a_forked_child_steps_where_no_thread_can_be_made():
    """Every part is done, by the calling thread."""
    run_python(f"""
{LARGE_STEP}
torch.set_num_threads(1)
expected, reference = make(6 * 2**20)
param, optimizer = make(6 * 2**20)
reference.step()
torch.set_num_threads(6)
def work():
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = size + 4 * 2**20  # less than the stack of a thread
    unlimited = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, unlimited[1]))
    held = threading.Event()
    for made in range(100):  # some stacks of the parent's threads may be left over
        try:
            threading.Thread(target=held.wait, daemon=True).start()
        except RuntimeError:
            break
    assert made < 10, made
    optimizer.step()
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert_equal(param, expected)
in_a_child(work)
""")


def test_forks_while_another_thread_steps():
    """The children step with a parameter of their own, and the thread goes on."""
    run_python(f"""
{LARGE_STEP}
torch.set_num_threads(2)
param, optimizer = make(3 * 2**20)
expected, reference = make(3 * 2**20)
other, optimizer_of_other = make(3 * 2**20)
done, steps = threading.Event(), 0
def train():
    global steps
    while not done.is_set():
        optimizer.step()
        steps += 1
def work():
    optimizer_of_other.step()
    in_a_child(optimizer_of_other.step)
    assert optimizer_of_other.state[other]["step"].item() == 3 - 1
trainer = threading.Thread(target=train)
trainer.start()
for _ in range(8):
    in_a_child(work)
done.set()
trainer.join()
for _ in range(steps):
    reference.step()
assert steps > 0
assert_equal(param, expected)
""")


# Stands before the system's, which it calls unless it is told that there are no more threads.
NO_MORE_THREADS = """
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

extern "C" int pthread_create(pthread_t* thread, const pthread_attr_t* attributes,
                              void* (*start)(void*), void* argument) {
  if (getenv("NO_MORE_THREADS")) return EAGAIN;
  void* const next = dlsym(RTLD_NEXT, "pthread_create");
  return reinterpret_cast<decltype(&pthread_create)>(next)(thread, attributes, start, argument);
}
"""


def test_a_forked_child_that_gets_no_threads_does_the_whole_step(tmp_path):
    source, library = tmp_path / "threads.cpp", tmp_path / "threads.so"
    source.write_text(NO_MORE_THREADS)
    subprocess.run(
        [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-D_GNU_SOURCE", str(source), "-o",
         str(library), "-ldl"],
        check=True,
    )  # fmt: skip
    run_python(
        """
import os, signal, torch, fusedopt
torch.set_num_threads(4)
param = torch.nn.Parameter(torch.zeros(4_000_000)); param.grad = torch.ones(4_000_000)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os.environ["NO_MORE_THREADS"] = "1"
    fusedopt.SGD([param], lr=1.0).step()
    os._exit(0 if (param.detach().numpy() == -1).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
""",
        # Behind a sanitizer's, which has to come first.
        LD_PRELOAD=" ".join([*os.environ.get("LD_PRELOAD", "").split(), str(library)]),
    )
