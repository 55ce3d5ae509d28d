"""How an optimizer's options store what a rule computes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.reference.codes import decode_blocks, encode_blocks
from fusedopt.reference.formats import (
    round_bfloat16,
    round_bfloat16_stochastically,
    round_float32,
)
from fusedopt.reference.random import random_bits

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusedopt.reference.shared import Array, Rule, State


class Storage:
    """What an optimizer's options store of the numbers of a rule, for one parameter.

    Args:
        states: for each state of the rule, in the order of its header, whether it is signed.
        param: how the parameter is stored: ``round_bfloat16`` or another of these functions.
        state: the same for states, where ``state_bits`` is None.
        state_bits, stochastic_rounding, master_weights, seed: the options of the classes. With 8
            bits the parameter has 4,096 elements or more; smaller ones take 32.
        number: of the parameter in the order of ``state_dict()``.
    """

    def __init__(
        self,
        states: dict[str, bool],
        param: Callable[[Array], Array],
        state: Callable[[Array], Array],
        *,
        state_bits: int | None = None,
        stochastic_rounding: bool = False,
        master_weights: bool = False,
        seed: int = 0,
        number: int = 0,
    ) -> None:
        self.states = states
        self.round_param = round_float32 if master_weights else param
        self.round_state = round_float32 if state_bits == 32 else state
        self.state_bits = state_bits
        self.stochastic_rounding = stochastic_rounding
        self.seed, self.number = seed, number

    @property
    def draws(self) -> bool:
        """Whether random bits are drawn, so that steps are counted."""
        return self.stochastic_rounding or self.state_bits == 16

    def param(self, value: Array, step: int) -> Array:
        """What is stored of the parameter that step ``step`` makes."""
        if self.stochastic_rounding:
            return self._stochastic(value, 0, step)
        return self.round_param(value)

    def state(self, name: str, value: Array, step: int) -> Array:
        """What is stored of a state that step ``step`` makes."""
        if self.state_bits == 16:
            return self._stochastic(value, 2 + list(self.states).index(name), step)
        if self.state_bits == 8:
            signed = self.states[name]
            return decode_blocks(*encode_blocks(value, signed), signed).astype(value.dtype)
        return self.round_state(value)

    def initial(self, value: float, number: type[np.floating[Any]]) -> float:
        """What is stored of a state's value before the first step."""
        rounding = self.round_state
        if self.state_bits is not None:
            rounding = round_bfloat16 if self.state_bits == 16 else round_float32
        return float(rounding(np.full(1, value, number))[0])

    def _stochastic(self, value: Array, operand: int, step: int) -> Array:
        index = np.arange(value.size).reshape(value.shape)
        bits = random_bits(self.seed, self.number, operand, step, index)
        return round_bfloat16_stochastically(value, bits)


def stored(rule: Rule, storage: Storage) -> Rule:
    """``rule`` for a parameter and states that are stored as ``storage`` says.

    Arrays are of the type that the step is done in, in the order of the parameter's memory, and
    hold what is stored. A rule that counts no steps gets a state ``step`` where rounding needs one.
    """

    @functools.wraps(rule)
    def stored_rule(param: Array, grad: Array, state: State, **options: Any) -> tuple[Array, State]:
        step = state.get("step", 0) + 1
        known = {name: state[name] for name in state if name in storage.states or name == "step"}
        if "initial_accumulator_value" in options:
            value = options["initial_accumulator_value"]
            initial = storage.initial(value, param.dtype.type)
            options = {**options, "initial_accumulator_value": initial}
        param, state = rule(param, grad, known, **options)
        result: State = {"step": step} if "step" in state or storage.draws else {}
        for name in storage.states:
            if name in state:
                result[name] = storage.state(name, np.asarray(state[name]), step)
        return storage.param(np.asarray(param), step), result

    return stored_rule
