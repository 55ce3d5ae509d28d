"""Numbers in 16 bits: how they are rounded, and rules for what is stored in them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusedopt.reference.shared import Array, Rule, State


def _as_float32(bits: int) -> np.float32:
    return np.uint32(bits).view(np.float32)


def round_bfloat16(x: Array) -> Array:
    """The bfloat16 nearest to each float32, ties to even, as a float32 array.

    Every NaN becomes that of the bits 0x7fff.
    """
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) & np.uint32(
        0xFFFF0000
    )
    return np.where(np.isnan(x), _as_float32(0x7FFF << 16), rounded.view(np.float32))


def round_float16(x: Array) -> Array:
    """The float16 nearest to each float32, ties to even, as a float32 array.

    Every NaN becomes that of the bits 0x7fff.
    """
    with np.errstate(all="ignore"):
        rounded = x.astype(np.float16).astype(np.float32)
    return np.where(np.isnan(x), _as_float32(0x7FFFE000), rounded)


def in_16_bits(rule: Rule, round_to_storage: Callable[[Array], Array]) -> Rule:
    """``rule`` for parameters and states that are stored in 16 bits.

    All arrays are float32 and hold values of the 16-bit type. The step is done in float32; the
    parameter and every state are rounded when they are stored, once.

    Args:
        rule: a rule of this package, for arrays of float32.
        round_to_storage: ``round_bfloat16`` or ``round_float16``.
    """

    @functools.wraps(rule)
    def rounded_rule(
        param: Array, grad: Array, state: State, **options: Any
    ) -> tuple[Array, State]:
        if "initial_accumulator_value" in options:
            # A state that has been stored before the first step.
            value = np.full(1, options["initial_accumulator_value"], np.float32)
            options["initial_accumulator_value"] = float(round_to_storage(value)[0])
        param, state = rule(param, grad, state, **options)
        stored = {
            # Arithmetic on arrays of no dimensions gives NumPy's scalars; a step count is an int.
            name: value if isinstance(value, int) else round_to_storage(value)
            for name, value in state.items()
        }
        return round_to_storage(param), stored

    return rounded_rule
