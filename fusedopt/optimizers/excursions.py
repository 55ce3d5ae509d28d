"""Parameters that are away from where training goes on, for as long as a ``with`` lasts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native, modes
from fusedopt.forks import torch_on_one_thread_if_forked
from fusedopt.optimizers import shards
from fusedopt.optimizers.epilogue import AVERAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

# An excursion's name, and what ends it if the context could not be left.
_ENDS = {"at_iterate()": "leave_iterate()", "averaged()": "leave_averaged()"}


def _move(params: list[torch.Tensor], values: list[torch.Tensor]) -> None:
    is_inference = any(param.is_inference() for param in params)
    mode = torch.inference_mode() if is_inference else torch.no_grad()
    with mode, torch_on_one_thread_if_forked():
        if params:
            torch._foreach_copy_(params, values)


class Excursions(torch.optim.Optimizer):
    """Refuses what parameters that are away would spoil, and puts averages into them."""

    def _refuse_away(self, what: str) -> None:
        """Refuses what needs the parameters where training goes on.

        Raises:
            RuntimeError: they are not there. It names the excursion and what ends it.
        """
        excursion = self.__dict__.get("_excursion")
        if excursion is None:
            return
        name = excursion[0]
        raise RuntimeError(
            f"{what} inside {name}: the parameters are not where training goes on; leave the "
            f"context first, or call {_ENDS[name]} if it could not be left"
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Puts the averages that ``ema_decay`` keeps into the parameters, for as long as it lasts.

        To evaluate or to save a model:

        .. code-block:: python

            with optimizer.averaged():
                evaluate(model)

        On leaving, also by an exception, the parameters are what they were, bit for bit. What
        Ctrl-C raises meanwhile is held back until all of them are. Parameters without an average
        stay what they are. An average is float32 or wider, and rounded once to the parameter's
        dtype; the remainder of a master is not touched. This takes memory for one copy of the
        parameters that move. If other code keeps the context from being left (an ``ExitStack`` that
        is interrupted in its own code), ``leave_averaged`` restores as well.

        Raises:
            RuntimeError: on entering, if no group has ``ema_decay``, a state ``ema`` has another
                shape than its parameter, or another such context is active; in it, from ``step``,
                ``master_params`` and if the optimizer is copied or pickled; on leaving, if a
                parameter cannot be restored, because its data has another shape now. All others are
                then restored, and the message names the first.
        """
        return _native.Excursion(self, "averaged()", self._prepare_averages)

    def leave_averaged(self) -> None:
        """Restores the parameters after an ``averaged`` that could not be left.

        Does nothing where they are where training goes on. A context that is left after this one
        restores nothing more.

        Raises:
            RuntimeError: a parameter that cannot be restored, as from ``averaged``.
        """
        _native.end_excursion(self)

    def _prepare_averages(self) -> tuple[list[tuple[Any, ...]], Callable[[], None]]:
        """The parameters that will move with their values, and what moves them."""
        averages = {
            param: self.state[param][AVERAGE]
            for group in self.param_groups
            for param in group["params"]
            if AVERAGE in self.state.get(param, {})
        }
        if not averages and all(group.get("ema_decay") is None for group in self.param_groups):
            raise RuntimeError("averaged() needs averages, and no parameter group has ema_decay")
        modes.refuse(self.param_groups, self.state, averages.__contains__)
        saved, values = [], []
        for group_index, group in enumerate(self.param_groups):
            for index, param in enumerate(group["params"]):
                if param not in averages:
                    continue
                average = averages[param]
                if average.shape != param.shape:
                    raise RuntimeError(
                        f"parameter group {group_index}, parameter {index}: state 'ema' has shape "
                        f"{tuple(average.shape)}, the parameter {tuple(param.shape)}"
                    )
                saved.append((param, param.detach().clone(), group_index, index))
                values.append(shards.local(average))
        params = [shards.local(param) for param, *_ in saved]
        return saved, functools.partial(_move, params, values)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_away("an optimizer cannot be copied or pickled")
        return super().__getstate__()
