"""Parameters that are away from where training goes on, for as long as a ``with`` lasts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native, modes
from fusedopt.optimizers import shards
from fusedopt.optimizers.epilogue import AVERAGE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

# An excursion's name, and what ends it if the context could not be left.
_ENDS = {"at_iterate()": "leave_iterate()", "averaged()": "leave_averaged()"}


def _check_average(param: torch.Tensor, average: Any) -> None:
    """Refuses what cannot be put into a parameter.

    Raises:
        RuntimeError: it says why.
    """
    if not isinstance(average, torch.Tensor) or average.dtype not in (torch.float32, torch.float64):
        raise RuntimeError("state 'ema' must be a tensor of dtype float32 or float64")
    if average.shape != param.shape:
        shapes = f"{tuple(average.shape)}, the parameter {tuple(param.shape)}"
        raise RuntimeError(f"state 'ema' has shape {shapes}")
    if average.device != param.device or average.layout != torch.strided:
        raise RuntimeError("state 'ema' must be dense and on the parameter's device")
    if torch._debug_has_internal_overlap(shards.local(param)) == 1:
        raise RuntimeError("the parameter has elements that share memory")


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

        On leaving, also by an exception, the parameters are what they were, bit for bit. So is what
        ``model.state_dict()`` gave inside, which shares their memory: save or copy it there. What
        Ctrl-C raises meanwhile is held back until all of them are. Parameters without an average,
        and those of groups without ``ema_decay``, stay what they are. An average is float32 or
        wider, and rounded once to the parameter's dtype; the remainder of a master is not touched.
        This takes memory for one copy of the parameters that move. If other code keeps the context
        from being left (an ``ExitStack`` that is interrupted in its own code),
        ``leave_averaged`` restores as well.

        Raises:
            RuntimeError: on entering, if no group has ``ema_decay``, a state ``ema`` does not fit
                its parameter, or another such context is active; in it, from ``step``,
                ``master_params``, ``load_state_dict``, ``add_param_group`` and if the optimizer is
                copied or pickled; on leaving, if a parameter cannot be restored, because its data
                has another shape or dtype now. All others are then restored, and the message names
                the first.
        """
        if "param_groups" not in self.__dict__:
            raise RuntimeError("averaged() is for the optimizer itself, and this one wraps it")
        return _native.Excursion(self, "averaged()", self._prepare_averages)

    def leave_averaged(self) -> None:
        """Restores the parameters after an ``averaged`` that could not be left.

        Does nothing where they are where training goes on. A context that is left after this one
        restores nothing more.

        Raises:
            RuntimeError: a parameter that cannot be restored, as from ``averaged``.
        """
        _native.end_excursion(self)

    def _prepare_averages(self) -> tuple[list[tuple[Any, ...]], Callable[[], object]]:
        """The parameters that will move with their values, and what moves them.

        The latter runs no Python code, so that nothing comes in between once they have moved.
        """
        places = {
            (group_index, index): param
            for group_index, group in enumerate(self.param_groups)
            if group.get("ema_decay") is not None
            for index, param in enumerate(group["params"])
        }
        if not places:
            raise RuntimeError("averaged() needs averages, and no parameter group has ema_decay")
        places = {p: param for p, param in places.items() if AVERAGE in self.state.get(param, {})}
        moved = set(places.values())
        modes.refuse(self.param_groups, self.state, moved.__contains__)
        saved, averages = [], []
        for (group_index, index), param in places.items():
            average = self.state[param][AVERAGE]
            try:
                _check_average(param, average)
            except RuntimeError as error:
                place = f"parameter group {group_index}, parameter {index}"
                raise RuntimeError(f"{place}: {error}") from None
            saved.append((param, param.detach().clone(), group_index, index))
            averages.append(shards.local(average))
        # Of detached tensors, so that no mode of autograd has to be entered.
        params = [shards.local(param) for param, *_ in saved]
        if not params:
            return saved, list
        return saved, functools.partial(torch._foreach_copy_, params, averages)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_away("an optimizer cannot be copied or pickled")
        return super().__getstate__()
