"""Processes that are the ranks of checks, one check after the other."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

from distributed_helpers import in_group
from forked import SECONDS, context

SECONDS_AFTER_A_FAILURE = 1


def _serve(tasks: Connection) -> None:
    """Runs what arrives, each as a rank of a new group, and says what went wrong, if anything."""
    while True:
        try:
            task = tasks.recv()
        except EOFError:  # the tests have ended
            return
        try:
            in_group(*task)
            tasks.send("")
        except BaseException:
            tasks.send(traceback.format_exc())


def problems_of(tasks: list[Connection]) -> list[str]:
    """What ranks say that is not "". One that fails makes others fail, soon, or hang."""
    left = {connection: rank for rank, connection in enumerate(tasks)}
    problems: list[str] = []
    deadline = time.monotonic() + SECONDS
    while left:
        ready = wait(list(left), timeout=max(deadline - time.monotonic(), 0))
        if not ready:
            return [*problems, f"ranks {sorted(left.values())}: no end"]
        for connection in ready:
            rank = left.pop(connection)
            if said := received(connection):
                problems.append(f"rank {rank}: {said}")
                deadline = min(deadline, time.monotonic() + SECONDS_AFTER_A_FAILURE)
    return problems


def received(connection: Connection) -> str:
    try:
        return connection.recv()
    except EOFError:
        return "it crashed"


class Ranks:
    """Processes that stay: what torch prepares when it is first asked is prepared once.

    After a check that failed, whose ranks may wait for each other, there are others.
    """

    def __init__(self) -> None:
        self._workers: list[tuple] = []  # the process and our end of its pipe

    def run(self, function: Callable, world_size: int, rendezvous: Path, *args: object) -> None:
        """Calls ``function(rank, world_size, *args)`` in a process for each rank.

        Raises:
            AssertionError: a rank raised something, crashed or hung.
        """
        while len(self._workers) < world_size:
            self._workers.append(self._started())
        tasks = [connection for _, connection in self._workers[:world_size]]
        for rank, connection in enumerate(tasks):
            connection.send((rank, function, world_size, rendezvous, *args))
        problems = problems_of(tasks)
        if problems:
            self.stop()
        assert not problems, f"{function.__name__}\n" + "\n".join(problems)

    def stop(self) -> None:
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers = []

    @staticmethod
    def _started() -> tuple:
        ours, theirs = context().Pipe()
        process = context().Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours
