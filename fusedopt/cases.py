"""The table of rules and options that verification and every test suite draw on.

A new optimizer enters here with one row. Every option appears away from its default and away from
zero, so that an option that is ignored, or applied in the wrong place, changes some bits.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import fusedopt
from fusedopt import reference

if TYPE_CHECKING:
    from collections.abc import Callable

DECAY = {"weight_decay": 0.1}
MAXIMIZE = {"maximize": True}


@dataclass(frozen=True)
class Row:
    """One optimizer: its class, its reference, torch's class, and the options to try."""

    optimizer: type[fusedopt.FusedOptimizer]
    reference: Callable[..., Any]
    torch_optimizer: type[torch.optim.Optimizer] | None
    options: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.optimizer.__name__

    def reference_options(self, group: dict[str, Any]) -> dict[str, Any]:
        """What of a parameter group the reference function takes, with numbers for tensors."""
        names = inspect.signature(self.reference).parameters
        return {key: _plain(value) for key, value in group.items() if key in names}


@dataclass(frozen=True)
class Case:
    """One optimizer with one set of options."""

    row: Row
    options: dict[str, Any]

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.row.name}({options})"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value.item() if isinstance(value, torch.Tensor) else value


_ADAM: tuple[dict[str, Any], ...] = (
    {},
    {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3},
    {"betas": (0.3, 0.4)},
    {"betas": (0.0, 0.9)},
    {"amsgrad": True, "betas": (0.9, 0.5)},
    {"amsgrad": True, "lr": 0.02, **DECAY, **MAXIMIZE},
)

ROWS: tuple[Row, ...] = (
    Row(
        fusedopt.SGD,
        reference.sgd,
        torch.optim.SGD,
        (
            {},
            {"lr": 0.1, **DECAY},
            {"lr": 0.1, **MAXIMIZE},
            {"momentum": 0.9},
            {"momentum": 0.8, "dampening": 0.3, **DECAY},
            {"momentum": 0.9, "nesterov": True, "lr": 0.01},
            {"momentum": 0.9, "nesterov": True, **DECAY, **MAXIMIZE},
        ),
    ),
    Row(
        fusedopt.Momentum,
        reference.momentum,
        None,
        ({}, {"lr": 0.1, "momentum": 0.7, **DECAY}, {**DECAY, **MAXIMIZE}),
    ),
    Row(
        fusedopt.Nesterov,
        reference.nesterov,
        None,
        ({}, {"lr": 0.1, "momentum": 0.7, **DECAY}, {**DECAY, **MAXIMIZE}),
    ),
    Row(
        fusedopt.Adagrad,
        reference.adagrad,
        torch.optim.Adagrad,
        (
            {},
            {"lr": 0.1, "lr_decay": 0.05, "eps": 1e-3},
            {"initial_accumulator_value": 0.5, **DECAY, **MAXIMIZE},
        ),
    ),
    Row(
        fusedopt.RMSprop,
        reference.rmsprop,
        torch.optim.RMSprop,
        (
            {},
            {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, **DECAY},
            {"alpha": 0.4, "centered": True},
            {"momentum": 0.8, **MAXIMIZE},
            {"momentum": 0.8, "centered": True, **DECAY, **MAXIMIZE},
        ),
    ),
    Row(
        fusedopt.Adadelta,
        reference.adadelta,
        torch.optim.Adadelta,
        ({}, {"lr": 0.5, "rho": 0.7, "eps": 1e-3, **DECAY}, {**DECAY, **MAXIMIZE}),
    ),
    Row(
        fusedopt.Adam,
        reference.adam,
        torch.optim.Adam,
        (*_ADAM, DECAY, {"decoupled_weight_decay": True, "lr": 0.1, **DECAY, **MAXIMIZE}),
    ),
    Row(fusedopt.AdamW, reference.adam, torch.optim.AdamW, (*_ADAM, {"lr": 0.1, **DECAY})),
)

CASES: tuple[Case, ...] = tuple(Case(row, options) for row in ROWS for options in row.options)

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
