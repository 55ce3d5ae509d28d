"""Which memory operations of a launch are ordered: PTX's causality order, as far as kernels use it.

A thread's operations are ordered; so are, by a barrier, those of a block's threads. Between blocks
only a release pattern (a fence of the GPU's scope, then an atomic) and an acquire pattern (an
atomic on the same address that observes it, then a fence by the same thread) order anything. Two
fence.sc alone do not: either of them may be the first. An atomic without fences orders no more
than the atomics before it on its place with what its own thread does next. A barrier of a warp
orders what its threads do ahead of it and behind it, and is not taken to order more.

Time counts fences and barriers. A stamp is the time of an access, above the number of its thread
in the launch plus one; no access is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WARP = 32
THREAD_BITS = 32
THREAD = np.int64((1 << THREAD_BITS) - 1)

Place = tuple[int, int]  # an address, behind the number of its space
# How many of the atomics on each place are known to have come before.
Positions = dict[Place, int]


@dataclass(frozen=True)
class Release:
    """What a fence makes visible to whoever observes the thread's next atomics."""

    thread: int
    before: int  # of the thread's operations, those earlier than this time
    block: int
    block_before: int  # the same of the operations of all threads of its block
    acquired: Positions
    observed: Positions


@dataclass
class Known:
    """What comes before the next operation of a thread: operations earlier than these times."""

    of_threads: np.ndarray
    of_blocks: np.ndarray
    observed: Positions


def join(into: Positions, more: Positions) -> None:
    for place, position in more.items():
        into[place] = max(into.get(place, 0), position)


class Ordering:
    def __init__(self, blocks: int, threads: int, seed: int = 0) -> None:
        self.blocks, self.threads = blocks, threads
        self._random = np.random.default_rng(seed)
        self.now = 1
        self._spaces = 0
        self._last_barrier = np.zeros(blocks, np.int64)
        self._warps = -(-threads // WARP)  # of a block
        self._last_warp_barrier = np.zeros(blocks * self._warps, np.int64)
        # The atomics on each place: what the fence before each released, if there was one.
        self._atomics: dict[Place, list[Release | None]] = {}
        self._released: dict[int, Release] = {}
        # What a thread has observed and may still acquire, observed, or acquired since its
        # block's last barrier; and what the block had before.
        self._acquirable: dict[int, Positions] = {}
        self._observed: dict[int, Positions] = {}
        self._acquired: dict[int, Positions] = {}
        self._block_observed: dict[int, Positions] = {}
        self._block_acquired: dict[int, Positions] = {}
        self._known: dict[tuple, Known] = {}

    def number_space(self) -> int:
        self._spaces += 1
        return self._spaces

    def stamps(self, thread: np.ndarray) -> np.ndarray:
        return thread + np.int64((self.now << THREAD_BITS) + 1)

    def order_of_atomics(self, count: int) -> np.ndarray:
        """In which order those happen that several threads do at once: PTX does not say."""
        return self._random.permutation(count)

    @staticmethod
    def thread_of(stamps: np.ndarray) -> np.ndarray:
        return (stamps & THREAD) - 1

    def warp_of(self, thread: np.ndarray) -> np.ndarray:
        """Their numbers in the launch."""
        block, place = np.divmod(thread, self.threads)
        return np.asarray(block * self._warps + place // WARP)

    # ---- what happens ----
    def barrier(self, block: int) -> None:
        """All threads of the block wait for each other."""
        self.now += 1
        self._last_barrier[block] = self.now
        first = block * self.threads
        for of_threads, of_blocks in (
            (self._observed, self._block_observed),
            (self._acquired, self._block_acquired),
        ):
            for thread in [t for t in of_threads if first <= t < first + self.threads]:
                join(of_blocks.setdefault(block, {}), of_threads.pop(thread))

    def warp_barrier(self, warp: int) -> None:
        """All threads of the warp wait for each other."""
        self.now += 1
        self._last_warp_barrier[warp] = self.now

    def fence(self, thread: int) -> None:
        self.acquire(thread)
        self.release(thread)

    def acquire(self, thread: int) -> None:
        join(self._acquired.setdefault(thread, {}), self._acquirable.get(thread, {}))

    def release(self, thread: int) -> None:
        self.now += 1
        block = thread // self.threads
        acquired, observed = self._positions(thread)
        barrier = int(self._last_barrier[block])
        self._released[thread] = Release(thread, self.now, block, barrier, acquired, observed)

    def atomic(self, thread: int, place: Place, returns: bool) -> None:
        """An atomic observes all earlier ones on its address. A reduction does not acquire."""
        atomics = self._atomics.setdefault(place, [])
        atomics.append(self._released.get(thread))
        for observed in (self._observed, self._acquirable) if returns else (self._observed,):
            observed.setdefault(thread, {})[place] = len(atomics)

    # ---- what is asked ----
    def ordered(self, stamps: np.ndarray, thread: np.ndarray) -> np.ndarray:
        """Whether each earlier access comes before whatever a thread does now."""
        before, time = self.thread_of(stamps), stamps >> THREAD_BITS
        block, own = before // self.threads, thread // self.threads
        result = before == thread
        result |= (block == own) & (time < self._last_barrier[own])
        warp = self.warp_of(thread)
        result |= (self.warp_of(before) == warp) & (time < self._last_warp_barrier[warp])
        for t in np.unique(thread[~result]):
            mine = (thread == t) & ~result
            known = self._known_to(int(t))
            result[mine] = time[mine] < known.of_threads[before[mine]]
            result[mine] |= time[mine] < known.of_blocks[block[mine]]
        return result

    def observed_all(self, thread: int, place: Place) -> bool:
        """Whether all atomics so far on an address come before whatever the thread does now."""
        known = self._known_to(thread)
        return known.observed.get(place, 0) >= len(self._atomics.get(place, []))

    def _positions(self, thread: int) -> tuple[Positions, Positions]:
        """What is acquired and what is observed, by the thread or by its block."""
        block = thread // self.threads
        acquired = dict(self._block_acquired.get(block, {}))
        observed = dict(self._block_observed.get(block, {}))
        join(acquired, self._acquired.get(thread, {}))
        join(observed, self._observed.get(thread, {}))
        return acquired, observed

    def _known_to(self, thread: int) -> Known:
        acquired, observed = self._positions(thread)
        key = (frozenset(acquired.items()), frozenset(observed.items()))
        if key not in self._known:
            self._known[key] = self._collect(acquired, observed)
        return self._known[key]

    def _collect(self, acquired: Positions, observed: Positions) -> Known:
        of_threads = np.zeros(self.blocks * self.threads, np.int64)
        of_blocks = np.zeros(self.blocks, np.int64)
        seen: Positions = {}
        waiting = list(acquired.items())
        while waiting:
            place, position = waiting.pop()
            for release in self._atomics[place][seen.get(place, 0) : position]:
                if release is not None:
                    of_threads[release.thread] = max(of_threads[release.thread], release.before)
                    of_blocks[release.block] = max(of_blocks[release.block], release.block_before)
                    join(observed, release.observed)
                    waiting.extend(release.acquired.items())
            seen[place] = max(seen.get(place, 0), position)
        return Known(of_threads, of_blocks, observed)
