"""Everything at once for as long as one likes: ``make soak``, or ``python tests/soak.py MINUTES``.

Threads train optimizers of every kind, with refused steps, checkpoints and changed options in
between; the main thread is interrupted by signals in the midst of its steps and forks children
that step, too. Every optimizer has twins (``tests/twins.py``), with which it has to agree, as
integers. After the warm-up, a fifth of the time, the memory of the process may grow by GROWTH
bytes. Prints figures; the exit status is 1 if anything was wrong.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import gc
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections import Counter

import torch
from twins import STEPS, InterruptedStepError, Training

from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import count_mismatches

LARGE = 5 * 2**19  # elements for which the step of a forked child takes several threads
TRAINING_THREADS = 2
GROWTH = 48 * 2**20
SIGNALS_EVERY = 0.004  # seconds
CHILD_SECONDS = 120


class Signals:
    """A timer whose signals raise InterruptedStepError, once each time that they are armed."""

    def __init__(self, figures):
        self.figures, self.is_armed = figures, False
        signal.signal(signal.SIGALRM, self.handle)
        signal.setitimer(signal.ITIMER_REAL, SIGNALS_EVERY, SIGNALS_EVERY)

    def handle(self, *_):
        self.figures["signals"] += 1
        if self.is_armed:
            self.is_armed = False
            raise InterruptedStepError

    def __enter__(self):
        self.is_armed = True

    def __exit__(self, *_):
        self.is_armed = False


class Forks:
    """Children that step what the parent has made, as large as takes them several threads."""

    def __init__(self, figures):
        self.figures = figures
        param = torch.nn.Parameter(torch.linspace(-1, 1, LARGE))
        param.grad = param.detach() * 3
        self.optimizer = ROWS[-1].optimizer([param])
        self.optimizer.step()
        self.expected = copy.deepcopy(self.optimizer)
        (copied,) = self.expected.param_groups[0]["params"]
        copied.grad = param.grad
        self.expected.step()

    def fork(self, training, generations=1):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                faulthandler.register(signal.SIGALRM, chain=True)  # says where it hangs
                signal.alarm(CHILD_SECONDS)
                count = torch.get_num_threads()
                torch.set_num_threads(
                    1
                )  # torch's own operations would wait for those that are gone
                training.run(3)
                torch.set_num_threads(count)
                if generations > 1:
                    self.fork(training, generations - 1)
                self.optimizer.step()
                a, b = (o.param_groups[0]["params"][0] for o in (self.optimizer, self.expected))
                status = int(count_mismatches(a.detach().numpy(), b.detach().numpy()) > 0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != 0:
            raise AssertionError(f"a forked child ended with {status}")
        self.figures["forks"] += 1


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Soak:
    """Threads that train, and the main thread, until the time is up or something is wrong."""

    def __init__(self, seconds, seed):
        self.seed, self.end = seed, time.monotonic() + seconds
        self.figures = [Counter() for _ in range(1 + TRAINING_THREADS)]
        self.errors, self.resident = [], []

    def seeds(self, thread):
        number = 0
        while time.monotonic() < self.end and not self.errors:
            yield self.seed + 1000 * number + thread
            number += 1

    def guarded(self, work, *arguments):
        try:
            work(*arguments)
        except BaseException:
            self.errors.append(traceback.format_exc())

    def train(self, thread):
        for seed in self.seeds(thread):
            Training(seed, self.figures[thread]).run()

    def interrupt_and_fork(self):
        figures = self.figures[0]
        signals, forks = Signals(figures), Forks(figures)
        for seed in self.seeds(0):
            training = Training(seed, figures)
            torch.set_num_threads(training.rng.randint(1, 4))
            for _ in range(STEPS):
                training.interrupted_step(signals)
            training.run()
            forks.fork(training, training.rng.randint(1, 2))
            self.resident.append(resident_bytes())

    def run(self):
        threads = [
            threading.Thread(target=self.guarded, args=(self.train, 1 + thread))
            for thread in range(TRAINING_THREADS)
        ]
        for thread in threads:
            thread.start()
        self.guarded(self.interrupt_and_fork)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for thread in threads:
            thread.join()

    def growth(self):
        """Medians of the fifth of the time after the warm-up, and of the last."""
        fifth = max(len(self.resident) // 5, 1)
        after = self.resident[fifth : 2 * fifth] or self.resident
        return statistics.median(after), statistics.median(self.resident[-fifth:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    soak = Soak(60 * options.minutes, options.seed)
    soak.run()
    for error in soak.errors:
        print(error)
    for name, count in sorted(sum(soak.figures, Counter()).items()):
        print(f"{name:20} {count:10,}")
    if not soak.resident:
        return 1
    warm, end = soak.growth()
    for when, size in (
        ("at the start", soak.resident[0]),
        ("when warm", warm),
        ("at the end", end),
    ):
        print(f"{'MiB ' + when:20} {size / 2**20:10.1f}")
    if end - warm > GROWTH:
        print(f"it has grown by more than {GROWTH / 2**20:.0f} MiB")
        return 1
    return 1 if soak.errors else 0


if __name__ == "__main__":
    sys.exit(main())
