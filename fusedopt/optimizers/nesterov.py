"""Nesterov's accelerated gradient."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from fusedopt import _native, modes
from fusedopt.optimizers import storage
from fusedopt.optimizers.momentum import Momentum

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class Nesterov(Momentum):
    r"""Nesterov's accelerated gradient in its textbook form, with one forward pass per step.

    .. code-block:: text

        velocity = momentum * velocity - lr * gradient at (x + momentum * velocity)
        x = x + velocity

    The parameter holds the lookahead point ``x + momentum * velocity``, which is where the gradient
    has to be taken, so the training loop needs no change and no second forward pass. To evaluate or
    save the iterate ``x`` itself, use :meth:`at_iterate`.

    At a constant learning rate and momentum this walks the same points as
    ``SGD(momentum=..., nesterov=True)``. The two differ when the learning rate changes: here the
    velocity keeps the speed it has gathered and only new gradients feel the new rate; in
    :class:`fusedopt.SGD`, as in ``torch.optim.SGD``, the rate multiplies the whole buffer. When the
    momentum of a group changes between two steps, the parameter is read as the lookahead point of
    the new momentum.

    Arguments, state and errors are those of :class:`Momentum`; weight decay is taken at the
    lookahead point, like the gradient.

    Source: Nesterov, A method of solving a convex programming problem with convergence rate
    O(1/k^2), 1983; Sutskever et al., ICML 2013, equations 3 and 4. Reference:
    :func:`fusedopt.reference.nesterov`.
    """

    _rule = "nesterov"

    def at_iterate(self) -> AbstractContextManager[None]:
        """Puts the iterate ``x`` into the parameters for as long as the context lasts.

        On leaving, also by an exception, the lookahead point is restored bit for bit. What Ctrl-C
        raises meanwhile is held back until all of it is restored. This takes memory for one copy of
        the parameters that have a velocity. If other code keeps the context from being left (an
        ``ExitStack`` that is interrupted in its own code), :meth:`leave_iterate` restores as well.

        Raises:
            RuntimeError: on entering, if the context is active already; in it, from ``step`` and if
                the optimizer is copied or pickled, which would lose where its parameters have to
                be; on leaving, if a parameter cannot be restored, because its data has another
                shape now. All others are then restored, and the message names the first.
            RuntimeError, ValueError, TypeError: a velocity or momentum that ``step`` would refuse,
                or a mode or transform of torch's under which it would. No parameter has moved then.
        """
        return _native.Excursion(self, "at_iterate()", self._prepare_iterate)

    def leave_iterate(self) -> None:
        """Restores the lookahead point after an :meth:`at_iterate` that could not be left.

        Does nothing where parameters are at their lookahead point. A context that is left after
        this one restores nothing more.

        Raises:
            RuntimeError: a parameter that cannot be restored, as from :meth:`at_iterate`.
        """
        _native.end_excursion(self)

    def _prepare_iterate(self) -> tuple[list[tuple[Any, ...]], Callable[[], None]]:
        """The parameters that will move with their values, and what moves them.

        The latter runs no Python code, so that nothing comes in between once they have moved.
        """
        modes.refuse(self.param_groups, self.state, lambda param: param in self.state)
        saved = []
        groups = []
        for group_index, group in enumerate(self.param_groups):
            moved = []
            for index, param in enumerate(group["params"]):
                velocity = storage.numbers_of("velocity", self.state.get(param, {}), signed=True)
                if velocity is None:
                    continue
                saved.append((param, param.detach().clone(), group_index, index))
                # x = param - momentum * velocity: a step of plain SGD along the velocity.
                alias = param.detach()
                if getattr(velocity, "dtype", None) != alias.dtype:
                    alias.grad_dtype = None
                alias.grad = velocity
                moved.append(alias)
            options = dict.fromkeys(("momentum", "dampening", "weight_decay"), 0.0)
            flags = dict.fromkeys(("nesterov", "maximize"), False)
            groups.append({"params": moved, "lr": group["momentum"], **options, **flags})
        _native.check_step("sgd", groups, {}, self._create_state)
        return saved, functools.partial(_native.step, "sgd", groups, {}, self._create_state)
