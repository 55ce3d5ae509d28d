"""Steps in the backward pass: each parameter as soon as its gradient is complete."""

from __future__ import annotations

import contextlib
import gc
import sys
import weakref
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from fusedopt.hooks import untraced
from fusedopt.optimizers.base import FusedOptimizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Place = tuple[int, int]


class StepInBackward:
    """What :func:`step_in_backward` returns. As a context manager it calls :meth:`remove`."""

    def __init__(
        self, optimizer: FusedOptimizer, clip: Callable[[torch.Tensor], object] | None
    ) -> None:
        self._optimizer = optimizer
        self._clip = clip
        self._hooks: dict[torch.Tensor, torch.utils.hooks.RemovableHandle] = {}
        self._places: dict[torch.Tensor, Place] = {}
        self._stepped: set[torch.Tensor] = set()
        self._accumulates = False
        self._is_wrapper_looked_for = False
        self.attach()
        optimizer._in_backward = self

    def remove(self) -> None:
        """Makes the optimizer an ordinary one again. Gradients that there are stay."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        if self._optimizer._in_backward is self:
            self._optimizer._in_backward = None

    def __enter__(self) -> StepInBackward:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    @contextlib.contextmanager
    def accumulating(self) -> Iterator[None]:
        """Backward passes in here add to gradients, as without this, and step nothing.

        For all micro-batches of a step but the last.
        """
        outer = self._accumulates
        self._accumulates = True
        try:
            yield
        finally:
            self._accumulates = outer

    def attach(self) -> None:
        """Sees to parameters that are new, or have not required a gradient before.

        Raises:
            RuntimeError: they are in a wrapper that reduces gradients after the hooks.
            ValueError: a parameter is listed twice.
        """
        groups = self._optimizer.param_groups
        places: dict[torch.Tensor, Place] = {}
        for group_index, group in enumerate(groups):
            for index, param in enumerate(group["params"]):
                place = places.setdefault(param, (group_index, index))
                if place != (group_index, index):
                    raise ValueError(
                        f"parameter group {group_index}, parameter {index}: is also parameter "
                        f"{place[1]} of group {place[0]}"
                    )
        new = [param for param in places if param.requires_grad and param not in self._hooks]
        if new:
            _refuse_wrapped(places)
            self._is_wrapper_looked_for = False
        self._places = places
        for param in new:
            register: Any = param.register_post_accumulate_grad_hook
            self._hooks[param] = register(_weakly(self))

    def begin(self) -> None:
        """Another step begins, so that each parameter may be stepped again."""
        self._stepped.clear()

    def refuse_scaler(self) -> NoReturn:
        """A gradient scaler asks what the optimizer leaves to it, or has told what it has found."""
        raise RuntimeError(
            "a gradient scaler looks at all gradients ahead of the step, and step_in_backward() "
            "leaves none; train in bfloat16 without a scaler, or call remove()"
        )

    def finish(self, closure: object) -> None:
        """What ``step`` does: updates the parameters that still have a gradient.

        Raises:
            RuntimeError: there is a closure or a gradient scaler, or a gradient of a parameter that
                this step has updated already.
        """
        if closure is not None:
            raise RuntimeError(
                "step(closure) would update parameters while the closure is evaluated; "
                "step_in_backward() is for steps without a closure"
            )
        self._refuse_what_needs_all_gradients()
        self.attach()
        for param in [param for param in self._places if param.grad is not None]:
            self._step(param)
        self.begin()

    def _complete(self, param: torch.Tensor) -> None:
        """Called by the hook: this backward pass has added all that it adds to a gradient."""
        if self._accumulates:
            return
        if torch.is_grad_enabled():
            raise RuntimeError(
                "backward(create_graph=True) needs parameters to stay what they are, and "
                "step_in_backward() updates them"
            )
        if not self._is_wrapper_looked_for:
            _refuse_wrapped(self._places)
            self._is_wrapper_looked_for = True
        self._refuse_what_needs_all_gradients()
        self._step(param)

    def _step(self, param: torch.Tensor) -> None:
        group_index, index = place = self._place_of(param)
        if param in self._stepped:
            raise RuntimeError(
                f"parameter group {group_index}, parameter {index}: has another gradient after it "
                "was updated in this step; call step() or zero_grad() after each backward pass, or "
                "have all but the last of them inside of accumulating(). Reentrant checkpoints "
                "are backward passes of their own: use_reentrant=False"
            )
        if self._clip is not None:
            with torch.no_grad():
                self._clip(param)
        version = param._version
        try:
            self._optimizer._step(only=place)
        except BaseException:
            if param._version != version:  # Ctrl-C is raised when a step is done, or not begun
                self._release(param)
            raise
        self._release(param)

    def _release(self, param: torch.Tensor) -> None:
        self._stepped.add(param)
        param.grad = None

    def _place_of(self, param: torch.Tensor) -> Place:
        """Where a parameter is in the groups, which may have changed."""
        place = self._places.get(param)
        groups = self._optimizer.param_groups
        if place is not None and place[0] < len(groups):
            params = groups[place[0]]["params"]
            if place[1] < len(params) and params[place[1]] is param:
                return place
        self.attach()
        if param in self._places:
            return self._places[param]
        raise RuntimeError(
            f"a parameter of shape {tuple(param.shape)} has been taken out of the optimizer; "
            "remove() what step_in_backward() returned first"
        )

    def _refuse_what_needs_all_gradients(self) -> None:
        _refuse_options(self._optimizer)
        if not {"grad_scale", "found_inf"}.isdisjoint(self._optimizer.__dict__):
            self.refuse_scaler()


def _weakly(steps: StepInBackward) -> Callable[[torch.Tensor], None]:
    """A hook that keeps nothing alive: garbage collection does not see what hooks refer to."""
    reference = weakref.ref(steps)

    def complete(param: torch.Tensor) -> None:
        if (alive := reference()) is not None:
            alive._complete(param)

    return untraced(complete)


def _refuse_options(optimizer: FusedOptimizer) -> None:
    for name in ("max_grad_norm", "skip_nonfinite"):
        if getattr(optimizer, name) not in (None, False):
            raise RuntimeError(
                f"{name} is about all gradients together, which step_in_backward() never has; "
                "its option clip is called for each parameter"
            )


def _refuse_wrapped(params: dict[torch.Tensor, Place]) -> None:
    """Refuses parameters of a wrapper whose hooks reduce a gradient after ours have seen it.

    DDP leaves no trace on a parameter, so that its objects have to be looked for.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    wrappers: tuple[type, ...] = (torch.nn.parallel.DistributedDataParallel,)
    if fsdp := sys.modules.get("torch.distributed.fsdp"):
        wrappers += (fsdp.FullyShardedDataParallel,)
    for wrapper in gc.get_objects():
        if not issubclass(type(wrapper), wrappers):
            continue
        for param in wrapper.parameters():
            if param in params:
                group_index, index = params[param]
                raise RuntimeError(
                    f"parameter group {group_index}, parameter {index}: is in a "
                    f"{type(wrapper).__name__}, which reduces gradients over ranks after "
                    "step_in_backward() would use them; fully_shard (FSDP2) reduces them before"
                )


def step_in_backward(
    optimizer: FusedOptimizer, *, clip: Callable[[torch.Tensor], object] | None = None
) -> StepInBackward:
    """Has every parameter stepped in the backward pass as soon as its gradient is complete.

    The gradient is freed at once, so that the gradients of all parameters never exist together.
    Parameters and states have the bits of the ordinary step. Training loops stay what they are::

        handle = fusedopt.step_in_backward(optimizer)
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), targets).backward()  # updates the parameters
            optimizer.step()  # for schedulers and hooks: there is nothing left to update
            scheduler.step()

    ``step()`` ends a step. It updates what still has a gradient, such as a parameter that only an
    earlier micro-batch has used. Without ``step()`` or ``zero_grad()`` in between, a second
    gradient of a parameter is refused, because it belongs to the same step.

    An error in the backward pass leaves those parameters updated whose gradient was complete. All
    others are as they were. ``zero_grad()`` drops gradients that are left, ``step()`` uses them.

    Keep the optimizer or the handle: parameters are stepped as long as there is one of them.

    A copy or pickle of the optimizer is an ordinary one. Parameters that are added later, or
    require a gradient later, are stepped in the same way.

    Args:
        optimizer: one of this package, of any class.
        clip: called with each parameter ahead of its update, to change ``param.grad`` in place:
            ``lambda param: torch.nn.utils.clip_grad_norm_(param, 1.0)`` clips each by its own norm.

    Returns:
        A handle. ``remove()`` goes back to ordinary steps. ``accumulating()`` is a context for the
        backward passes of all micro-batches of a step but the last.

    Raises:
        TypeError: the optimizer is of another package.
        NotImplementedError: it has a ``step`` of its own, which would not be called.
        RuntimeError: its steps are in the backward pass already; ``max_grad_norm`` or
            ``skip_nonfinite`` is set, now or when a gradient is complete; a parameter is in
            ``DistributedDataParallel`` or ``FullyShardedDataParallel``. From ``step``, a closure or
            a gradient scaler; from ``backward``, ``create_graph=True``.
        ValueError: a parameter is listed twice.

    All of these, and those of ``step``, leave the parameter and its gradient as they were, apart
    from what ``clip`` has changed.
    """
    if not isinstance(optimizer, FusedOptimizer):
        raise TypeError(f"step_in_backward() needs an optimizer of fusedopt, got {type(optimizer)}")
    classes = type(optimizer).__mro__
    for cls in classes[: classes.index(FusedOptimizer)]:
        if "step" in vars(cls):
            raise NotImplementedError(
                f"{cls.__name__} has a step() of its own, which step_in_backward() would not call"
            )
    if optimizer._in_backward is not None:
        raise RuntimeError(
            "this optimizer's steps are in the backward pass already; remove() them first"
        )
    _refuse_options(optimizer)
    return StepInBackward(optimizer, clip)
