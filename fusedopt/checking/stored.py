"""Compares native kernels with the reference where fewer bytes are stored: ``fusedopt verify``.

States in 32, 16 and 8 bits, parameters that are rounded stochastically or have a master, gradients
of another dtype than their parameter; and what follows a step. What is compared is what is stored,
as integers: codes by the numbers that they stand for, a master as the float32 that it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusedopt import reference
from fusedopt.checking.verify import (
    ROUNDINGS,
    Result,
    Trajectory,
    count_mismatches,
    gradients,
)
from fusedopt.optimizers.storage import FEWEST_CODES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusedopt.checking.cases import Case
    from fusedopt.reference import Array, State

# States that count.
_COUNTS = ("step", "ema_step")

# Around a block of codes and the fewest that there are.
SIZES = (1, 255, 257, FEWEST_CODES - 1, FEWEST_CODES + 273)


@dataclass(frozen=True)
class Storage:
    """The dtypes of a parameter and its gradient, and the options."""

    param: torch.dtype
    grad: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        names = [str(dtype).removeprefix("torch.") for dtype in {self.param: 0, self.grad: 0}]
        return " ".join(["/".join(names), *(f"{k}={v}" for k, v in self.options.items())])


_F32, _F64, _BF16, _F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
_STOCHASTIC = {"stochastic_rounding": True, "seed": 5}
_MASTER = {"master_weights": True}
_AVERAGE = {"ema_decay": 0.9}

# Fewer bytes, and what follows a step.
STORAGES = (
    Storage(_F32, _BF16),
    Storage(_F32, _F32, {"state_bits": 16}),
    Storage(_F32, _F32, {"state_bits": 8}),
    Storage(_F32, _BF16, {"state_bits": 16, "seed": 2**64 - 1}),
    Storage(_F64, _F64, {"state_bits": 32}),
    Storage(_F64, _F64, {"state_bits": 16}),
    Storage(_F64, _F32, {"state_bits": 8}),
    Storage(_F16, _F16, {"state_bits": 16}),
    Storage(_F16, _F16, {"state_bits": 8}),
    Storage(_BF16, _BF16, {"state_bits": 32}),
    Storage(_BF16, _BF16, _STOCHASTIC),
    Storage(_BF16, _F32, {**_STOCHASTIC, "state_bits": 16}),
    Storage(_BF16, _BF16, {**_STOCHASTIC, "state_bits": 8}),
    Storage(_BF16, _BF16, _MASTER),
    Storage(_BF16, _BF16, {**_MASTER, "state_bits": 32}),
    Storage(_BF16, _BF16, {**_MASTER, "state_bits": 16}),
    Storage(_BF16, _F64, {**_MASTER, "state_bits": 8}),
    Storage(_F32, _F32, {"l1": 0.2, **_AVERAGE}),
    Storage(_F64, _F64, {"l1": 0.2, "ema_decay": 1}),
    Storage(_F32, _F64, {"ema_decay": 0.2}),
    Storage(_F16, _F16, _AVERAGE),
    Storage(_BF16, _BF16, {**_STOCHASTIC, **_AVERAGE, "l1": 0.2, "state_bits": 8}),
    Storage(_BF16, _F32, {**_MASTER, "l1": 0.2, "ema_decay": 1, "state_bits": 16}),
)

# For a combination of the same formats that has a loop of its own on the CPU.
ON_CPU = (Storage(_BF16, _BF16, {"state_bits": 16}),)


def _numbers(tensor: torch.Tensor) -> Array:
    return tensor.detach().to("cpu", torch.float64).numpy().copy()


class Expected:
    """What the reference makes of one parameter.

    Args:
        case: the rule and its options.
        storage: how parameter and states are stored.
        param: the parameter before the first step.
        number: of the parameter in its optimizer.
    """

    def __init__(self, case: Case, storage: Storage, param: torch.Tensor, number: int = 0) -> None:
        options = dict(storage.options)
        l1, ema_decay = options.pop("l1", 0.0), options.pop("ema_decay", None)
        if options.get("state_bits") == 8 and param.numel() < FEWEST_CODES:
            options["state_bits"] = 32
        rounding = ROUNDINGS[storage.param]
        self.signs = reference.STATES[case.row.rule]
        kept = reference.Storage(self.signs, rounding, rounding, number=number, **options)
        rule = reference.stored(reference.with_l1(case.row.reference, l1), kept)
        is_wide = storage.param == torch.float64
        round_average = np.asarray if is_wide else reference.round_float32
        self.rule = reference.with_average(rule, ema_decay, round_average)
        dtypes = {storage.param, storage.grad}
        self.arithmetic: type[np.floating[Any]]
        self.arithmetic = np.float64 if torch.float64 in dtypes else np.float32
        self.param, self.states = _numbers(param), dict[str, Any]()

    def step(
        self, grad: torch.Tensor, options: dict[str, Any], scale: float | None = None
    ) -> Array:
        """Takes a step with the options of the rule.

        Args:
            grad: of the loss, times the scale of a gradient scaler if there is one.
            options: of the rule.
            scale: of the gradient scaler.

        Returns:
            The gradient that the rule takes, not rounded.
        """
        number: Array = _numbers(grad).astype(self.arithmetic)
        if scale is not None:
            number = np.asarray(reference.unscale(number, scale))
        states = {
            name: value if name in _COUNTS else value.astype(self.arithmetic)
            for name, value in self.states.items()
        }
        self.param, self.states = self.rule(
            self.param.astype(self.arithmetic),
            number,
            states,
            **options,
        )
        return number

    def mismatches(self, param: torch.Tensor, states: State) -> int:
        """Elements of a parameter and its states that differ in any bit."""
        total = _count(_stored_param(param, states), self.param)
        for name, expected in self.states.items():
            if name in _COUNTS:
                total += int(states[name].item() != expected)
            else:
                is_signed = self.signs.get(name, True)
                total += _count(_stored_state(name, states, is_signed), expected)
        return total


def _count(actual: Array, expected: Array) -> int:
    return count_mismatches(actual.astype(np.float64), expected.astype(np.float64))


def _stored_param(param: torch.Tensor, states: State) -> Array:
    if "param_remainder" not in states:
        return _numbers(param)
    upper = param.detach().cpu().view(torch.int16).numpy().view(np.uint16)
    return reference.join_master(upper, states["param_remainder"].cpu().numpy())


def _stored_state(name: str, states: State, signed: bool) -> Array:
    state = states[name].detach().cpu()
    if state.dtype != torch.uint8:
        return _numbers(state)
    scales = states[f"{name}_scale"].cpu().numpy()
    return reference.decode_blocks(state.numpy(), scales, signed)


class _StoredTrajectory(Trajectory):
    """The same with what an optimizer stores, beside :class:`Expected`."""

    def mismatches(self, expected: Sequence[Any]) -> int:
        return sum(
            one.mismatches(param, self.optimizer.state[param])
            for param, one in zip(self.params, expected, strict=True)
        )


def verify_storage(
    case: Case,
    storage: Storage,
    targets: Sequence[str],
    thread_counts: Sequence[int],
    steps: int = 4,
) -> list[Result]:
    """Steps one case, stored in one way, on every target, beside the reference.

    The first target is tried with every thread count, the others with the first of them.

    Returns:
        One result a target, whose ``rule`` is the case's and whose ``dtype`` the storage's name.
    """
    generator = np.random.default_rng(3)
    values = [torch.from_numpy(generator.standard_normal(n)).to(storage.param) for n in SIZES]
    runs = [
        (target, _StoredTrajectory(case, values, target, count, **storage.options))
        for position, target in enumerate(targets)
        for count in (thread_counts if position == 0 else thread_counts[:1])
    ]
    expected = [Expected(case, storage, value, n) for n, value in enumerate(values)]
    options = case.row.reference_options(runs[0][1].optimizer.param_groups[0])
    results = {target: Result(case.row.name, str(storage), target) for target in targets}
    for step in range(1, steps + 1):
        grads = [gradients(n, storage.grad, generator) for n in SIZES]
        for one, grad in zip(expected, grads, strict=True):
            one.step(grad, options)
        for target, run in runs:
            run.step(grads)
            where = f"{case}, {storage}, {run.thread_count} threads, step {step}"
            results[target].add(sum(SIZES), run.mismatches(expected), where)
    return list(results.values())
