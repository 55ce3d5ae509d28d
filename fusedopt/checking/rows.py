"""The rows: every optimizer is entered here, once, and whatever lists optimizers derives from it.

The names that the package exports, what ``from_torch`` converts, verification, the tests, the
benchmark, the worked example and the tables of the documentation.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fusedopt.optimizers.adadelta import Adadelta as Adadelta
from fusedopt.optimizers.adagrad import Adagrad as Adagrad
from fusedopt.optimizers.adam import Adam as Adam
from fusedopt.optimizers.adam import AdamW as AdamW
from fusedopt.optimizers.momentum import Momentum as Momentum
from fusedopt.optimizers.nesterov import Nesterov as Nesterov
from fusedopt.optimizers.rmsprop import RMSprop as RMSprop
from fusedopt.optimizers.sgd import SGD as SGD

if TYPE_CHECKING:
    from fusedopt.optimizers.base import FusedOptimizer
    from fusedopt.reference import Rule

# In which parameters, gradients and states may be.
DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

DECAY = {"weight_decay": 0.1}
MAXIMIZE = {"maximize": True}


class Row(NamedTuple):
    """One optimizer.

    Attributes:
        optimizer: its class.
        torch_optimizer: torch's class of which it takes the place, if torch has one.
        options: what to try. Every option appears away from its default and away from zero, so
            that one that is ignored, or applied in the wrong place, changes some bits.
        lr: a learning rate that trains a small network.
        usual: the options, beside it, with which the optimizer is trained and timed.
        twin: torch's class and its options that compute the same at a constant rate, where it is
            another class than ``torch_optimizer``.
    """

    optimizer: type[FusedOptimizer]
    torch_optimizer: type[torch.optim.Optimizer] | None
    options: tuple[dict[str, Any], ...]
    lr: float = 1e-3
    usual: dict[str, Any] = {}  # noqa: RUF012
    twin: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None

    @property
    def rule(self) -> str:
        """The name of the rule, which is that of its files, too."""
        return self.optimizer._rule

    @property
    def reference(self) -> Rule:
        """The rule in NumPy; imported when it is asked for, since no step needs it."""
        from fusedopt import reference

        rule: Rule = getattr(reference, self.rule)
        return rule

    @property
    def torch_twin(self) -> tuple[type[torch.optim.Optimizer], dict[str, Any]]:
        """Torch's class that computes the same, and the options with which it does."""
        if self.twin is not None:
            return self.twin
        assert self.torch_optimizer is not None
        return self.torch_optimizer, self.usual

    @property
    def name(self) -> str:
        """The name of the class."""
        return self.optimizer.__name__

    def reference_options(self, group: dict[str, Any]) -> dict[str, Any]:
        """What of a parameter group the reference takes, with numbers for tensors."""
        names = inspect.signature(self.reference).parameters
        return {key: _plain(value) for key, value in group.items() if key in names}


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
        SGD,
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
        lr=0.05,
        usual={"momentum": 0.9},
    ),
    Row(
        Momentum,
        None,
        ({}, {"lr": 0.1, "momentum": 0.7, **DECAY}, {**DECAY, **MAXIMIZE}),
        lr=0.05,
        twin=(torch.optim.SGD, {"momentum": 0.9}),
    ),
    Row(
        Nesterov,
        None,
        ({}, {"lr": 0.1, "momentum": 0.7, **DECAY}, {**DECAY, **MAXIMIZE}),
        lr=0.05,
        twin=(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ),
    Row(
        Adagrad,
        torch.optim.Adagrad,
        (
            {},
            {"lr": 0.1, "lr_decay": 0.05, "eps": 1e-3},
            {"initial_accumulator_value": 0.5, **DECAY, **MAXIMIZE},
        ),
        lr=0.02,
    ),
    Row(
        RMSprop,
        torch.optim.RMSprop,
        (
            {},
            {"lr": 0.1, "alpha": 0.9, "eps": 1e-3, **DECAY},
            {"alpha": 0.4, "centered": True},
            {"momentum": 0.8, **MAXIMIZE},
            {"momentum": 0.8, "centered": True, **DECAY, **MAXIMIZE},
        ),
        lr=0.001,
    ),
    Row(
        Adadelta,
        torch.optim.Adadelta,
        ({}, {"lr": 0.5, "rho": 0.7, "eps": 1e-3, **DECAY}, {**DECAY, **MAXIMIZE}),
        lr=1.0,
    ),
    Row(
        Adam,
        torch.optim.Adam,
        (*_ADAM, DECAY, {"decoupled_weight_decay": True, "lr": 0.1, **DECAY, **MAXIMIZE}),
        lr=0.003,
    ),
    Row(
        AdamW,
        torch.optim.AdamW,
        (*_ADAM, {"lr": 0.1, **DECAY}),
        lr=0.003,
    ),
)

# Several classes may have one rule.
FIRST_OF_RULE: dict[str, Row] = {row.rule: row for row in reversed(ROWS)}
