"""What follows a step: an L1 penalty, and averages of the parameter."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from fusedopt.reference.shared import lerp, quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusedopt.reference.shared import Array, Rule, State


def shrink(param: Array, threshold: float) -> Array:
    """The proximal operator of ``threshold * abs(param)``: ``sign * max(abs - threshold, 0)``.

    Parikh, Boyd, Proximal Algorithms, 2014, section 6.5.2.
    """
    scalar = param.dtype.type
    return np.copysign(np.maximum(np.abs(param) - scalar(threshold), scalar(0)), param)


def with_l1(rule: Rule, l1: float) -> Rule:
    """``rule`` with a decoupled L1 penalty, whose threshold is the learning rate times ``l1``.

    Between the rule and :func:`fusedopt.reference.stored`.
    """
    if l1 == 0:
        return rule

    @functools.wraps(rule)
    @quiet
    def rule_with_l1(
        param: Array, grad: Array, state: State, *, lr: float, **options: Any
    ) -> tuple[Array, State]:
        param, state = rule(param, grad, state, lr=lr, **options)
        return shrink(param, lr * l1), state

    return rule_with_l1


def with_average(
    rule: Rule, ema_decay: float | None, round_average: Callable[[Array], Array] = np.asarray
) -> Rule:
    """``rule`` with the average of the parameter in the state ``ema``.

    Around everything else: the average is of the parameter as it is stored. At first it is a copy.

    Args:
        rule: a rule, which may store its results by :func:`fusedopt.reference.stored`.
        ema_decay: ``ema = decay * ema + (1 - decay) * param``, from the nearer end, and a copy for
            0; 1 for the mean of all parameters so far, which the state ``ema_step`` counts (Polyak,
            Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992). None keeps no
            average.
        round_average: how the average is stored.
    """
    if ema_decay is None:
        return rule

    @functools.wraps(rule)
    @quiet
    def rule_with_average(
        param: Array, grad: Array, state: State, **options: Any
    ) -> tuple[Array, State]:
        averages = {name: state[name] for name in ("ema", "ema_step") if name in state}
        rest = {name: state[name] for name in state if name not in averages}
        param, result = rule(param, grad, rest, **options)
        if "ema" not in averages:
            averages = {}
        averaged = averages.get("ema_step", 0)
        weight = 1.0 / (averaged + 1) if ema_decay == 1 else 1.0 - ema_decay
        is_copy = not averages or weight == 1
        average = param if is_copy else lerp(averages["ema"], param, weight)
        result = {**result, "ema": round_average(average)}
        if ema_decay == 1:
            result["ema_step"] = averaged + 1
        return param, result

    return rule_with_average
