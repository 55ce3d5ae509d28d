"""A step for which there is no memory raises MemoryError and changes nothing, or is done."""

from __future__ import annotations

import forked
from helpers import run_python

# One attempt in a process of its own, which may be short of memory in many places: the address
# space is limited to what the process has and some bytes more.
ATTEMPT = """
import resource, torch, fusedopt
from fusedopt.checking.rows import ROWS

def address_space():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[0]) * resource.getpagesize()

def attempt(row, sizes, strided, threads, states, spare):
    torch.set_num_threads(threads)
    params = []
    for n in sizes:
        memory = torch.ones(2 * n) if strided else torch.ones(n)
        params.append(torch.nn.Parameter(memory[::2] if strided else memory))
        params[-1].grad = torch.ones(n)
    optimizer = row.optimizer(params, lr=0.5)
    if states:
        optimizer.step()
    steps = len(optimizer.state) and {
        p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    before = [(p.detach().clone(), p._version) for p in params]
    had = [p in optimizer.state for p in params]
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + spare, limit[1]))
    try:
        optimizer.step()
        outcome = "done"
    except MemoryError:
        outcome = "refused"
    resource.setrlimit(resource.RLIMIT_AS, limit)
    if outcome == "refused":
        for p, (value, version), has in zip(params, before, had):
            assert torch.equal(p, value) and p._version == version
            assert (p in optimizer.state) == has
            for name, state in optimizer.state.get(p, {}).items():
                assert torch.equal(state, steps[p][name])
    else:
        for p, (value, _) in zip(params, before):
            assert not (p == value).any()
            for state in optimizer.state[p].values():
                assert state.isfinite().all()
    return outcome

rows = {row.name: row for row in ROWS}
rows["SGD"].optimizer([torch.ones(1)])  # torch imports more when it makes the first one
"""


def test_a_step_is_done_or_raises_memory_error():
    """From no byte to spare up to enough, each in a forked copy of one process."""
    forked.run_python(f"""{ATTEMPT}
import collections, itertools, os
outcomes = collections.Counter()
for states, threads in itertools.product((False, True), (1, 8)):
    for sizes, strided in (([1_000_000] * 2, False), ([100_000], True), ([7] * 200, False)):
        for spare in (0, 1 << 18, 3 << 20, 1 << 24, 1 << 30):
            pid = os.fork()
            if pid == 0:
                code = 3
                try:
                    outcome = attempt(rows["Adam"], sizes, strided, threads, states, spare)
                    code = 0 if outcome == "done" else 1
                finally:
                    os._exit(code)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            assert code in (0, 1), (sizes[:1], strided, spare, code)
            outcomes[states, code] += 1
print(dict(outcomes))
assert outcomes[False, 0] and outcomes[False, 1] and outcomes[True, 0]
""")


def test_threads_that_cannot_be_started_are_not_missed():
    """In a process that was not forked, where OpenMP's runtime would have to start them."""
    run_python(
        f"""{ATTEMPT}
attempt(rows["SGD"], [4_000_000], False, 1, False, 1 << 30)
for spare in (1 << 16, 1 << 24):
    attempt(rows["SGD"], [4_000_000], False, 16, False, spare)
"""
    )


def test_small_stacks():
    """Buffers of a block are not on the stack, of Python's threads nor of OpenMP's."""
    run_python(
        """
import threading, torch, fusedopt
torch.set_num_threads(2)
threading.stack_size(32 * 1024)
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    param = torch.nn.Parameter(torch.ones(600, 700, dtype=dtype))
    param.grad = torch.ones(700, 600, dtype=dtype).t()
    optimizer = fusedopt.Adam([param], amsgrad=True)
    def steps():
        for _ in range(3):
            optimizer.step()
    steps()
    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    assert optimizer.state[param]["step"] == 6
""",
        OMP_STACKSIZE="32k",
    )
