"""Processes that begin where torch has been imported: a server forks them.

Importing torch, and what it imports when it makes its first optimizer, takes seconds. What is tried
must not depend on OpenMP's threads, which a forked process does without, nor on the end of the
interpreter.
"""

from __future__ import annotations

import os
import traceback
from multiprocessing.connection import Connection

import torch.multiprocessing

SECONDS = 120  # of what takes seconds: a hang has to fail, and nothing else
PRELOAD = [
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.optim",
    "torch.distributed.tensor.parallel",
]


def context():
    """That of the server, which starts with the first process."""
    server = torch.multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOAD)
    return server


def _execute(code: str, environment: dict[str, str], results: Connection) -> None:
    os.environ.update(environment)
    try:
        exec(code, {"__name__": "__main__"})
        results.send("")
    except BaseException:
        results.send(traceback.format_exc())


def run_python(code: str, **environment: str) -> None:
    """Runs code in a process of its own, which has not imported the package.

    Raises:
        AssertionError: it raised something, crashed or hung.
    """
    ours, theirs = context().Pipe(duplex=False)
    process = context().Process(target=_execute, args=(code, environment, theirs))
    process.start()
    theirs.close()
    try:
        said = ours.recv() if ours.poll(SECONDS) else "it hangs"
    except EOFError:
        said = "it crashed"
    if said:
        process.kill()
    process.join(SECONDS)
    assert not said, said
    assert process.exitcode == 0, process.exitcode
