"""The random bits of stochastic rounding: a function of what is rounded, with no state of its own.

Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011: Philox4x32. It
turns a counter of 128 bits into 128 random ones, under a key of 64. Rounding takes seven rounds,
the fewest that pass all of BigCrush (table 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 7
_FACTORS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF

# Of so many neighbouring elements, the 32 calls of the generator for them give 16 bits to each.
GROUP = 256
_CALLS = 32


def philox(counter: NDArray[np.uint32], key: int, rounds: int = 10) -> NDArray[np.uint32]:
    """128 random bits for each counter.

    Args:
        counter: words of 32 bits, shape (..., 4), the least significant one first.
        key: 64 bits.
        rounds: 10 is what most libraries take.

    Returns:
        An array of the counters' shape.
    """
    low = np.uint64(_WORD)
    shift = np.uint64(32)
    words = [counter[..., w].astype(np.uint64) for w in range(4)]
    keys = [key & _WORD, key >> 32 & _WORD]
    for _ in range(rounds):
        first, second = words[0] * _FACTORS[0], words[2] * _FACTORS[1]
        words = [
            second >> shift ^ words[1] ^ np.uint64(keys[0]),
            second & low,
            first >> shift ^ words[3] ^ np.uint64(keys[1]),
            first & low,
        ]
        keys = [(k + step) & _WORD for k, step in zip(keys, _KEY_STEPS, strict=True)]
    return np.stack(words, axis=-1).astype(np.uint32)


def random_bits(
    seed: int, param: int, operand: int, step: int, index: NDArray[Any]
) -> NDArray[np.uint16]:
    """16 random bits for each element of one operand in one step.

    Of a group of 256 elements the first two words of call c go to elements 4 c to 4 c + 3, lower
    halves first, and the other two to those 128 further on. So a vector register of calls holds
    bits in the order of the elements, and a thread of a GPU has two packs of four for its call.

    Args:
        seed: of 64 bits, the generator's key.
        param: number of the parameter in the order of ``state_dict()``, below 2^32.
        operand: 0 for the parameter, 2 + s for the state with the number s in its rule.
        step: count of the step that rounds, 1 for the first. Bits repeat after 2^32 steps.
        index: of the elements in the order of the parameter's memory, integers of any shape.
    """
    index = np.asarray(index, np.uint64)
    group, place = index // np.uint64(GROUP), index % np.uint64(GROUP)
    pair, place = place // np.uint64(GROUP // 2), place % np.uint64(GROUP // 2)
    call = group * np.uint64(_CALLS) + place // np.uint64(4)
    counter = np.empty((*index.shape, 4), np.uint32)
    counter[..., 0] = call & np.uint64(_WORD)
    counter[..., 1] = call >> np.uint64(32) | np.uint64(operand << 24)
    counter[..., 2] = param & _WORD
    counter[..., 3] = step & _WORD
    half = place % np.uint64(4)
    word = (np.uint64(2) * pair + half // np.uint64(2)).astype(np.intp)
    words = philox(counter, seed, _ROUNDS)
    bits = np.take_along_axis(words, word[..., None], axis=-1)[..., 0]
    is_upper = half % np.uint64(2) == 1
    return np.where(is_upper, bits >> np.uint32(16), bits & np.uint32(0xFFFF)).astype(np.uint16)
