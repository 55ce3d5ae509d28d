"""What torch puts around its operations, of which a native step is none.

Dispatch modes see every operation on tensors, transforms of ``torch.func`` stand for tensors with
others, and forward AD gives them tangents. A step that they would not see is refused, or made an
operation.
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import library
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Groups = list[dict[str, Any]]


_DERIVATIVES = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)


def has_gradient(param: torch.Tensor) -> bool:
    """Whether ``step`` updates a parameter."""
    return param.grad is not None


def _recorders() -> list[Any]:
    """The modes that record or fake torch's operations instead of carrying them out."""
    modes = _get_current_dispatch_mode_stack()
    return [mode for mode in modes if getattr(mode, "_mode_key", None) is not None]


def sees_operations() -> bool:
    """Whether something records, fakes or transforms torch's operations, and would miss others."""
    return bool(torch._C._functorch.get_interpreter_stack() or _recorders())


def refuse(
    groups: Groups, state: dict[Any, Any], moves: Callable[[torch.Tensor], bool] = has_gradient
) -> None:
    """Refuses to update the parameters for which ``moves`` is true where torch would not see it.

    Raises:
        RuntimeError: inside ``torch.func.grad``, ``vjp`` or ``jvp``, as torch's own optimizers;
            under a mode that fakes or records operations; a tensor that has a tangent.
    """
    for interpreter in torch._C._functorch.get_interpreter_stack() or ():
        if interpreter.key() in _DERIVATIVES:
            raise RuntimeError(
                "cannot update parameters inside torch.func.grad, vjp or jvp, which would see "
                "nothing of it; do so outside of the function that is transformed"
            )
    for mode in _recorders():
        raise RuntimeError(
            f"cannot update parameters under {type(mode).__name__}, which would see nothing of it; "
            "do so outside of what is traced or faked"
        )
    if forward_ad._current_level >= 0:
        for what, tensor in _tensors(groups, state, moves):
            if torch._VF._unpack_dual(tensor, level=forward_ad._current_level)[1] is not None:
                raise RuntimeError(
                    f"{what} has a tangent of forward-mode AD, which would be lost; take its "
                    "primal (torch.autograd.forward_ad.unpack_dual)"
                )


def _tensors(
    groups: Groups, state: dict[Any, Any], moves: Callable[[torch.Tensor], bool]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that an update reads, and what they are."""
    for group_index, group in enumerate(groups):
        for name, option in group.items():
            for value in option if isinstance(option, tuple) else (option,):
                if torch.is_tensor(value):
                    yield f"parameter group {group_index}: {name}", value
        for index, param in enumerate(group["params"]):
            if not moves(param):
                continue
            names = {"the parameter": param, "the gradient": param.grad}
            names |= {f"state '{name}'": value for name, value in state.get(param, {}).items()}
            for name, value in names.items():
                if torch.is_tensor(value):
                    yield f"parameter group {group_index}, parameter {index}: {name}", value


def visible(
    step: Callable[..., None],
    groups: Groups,
    state: dict[Any, Any],
    only: tuple[int, int] | None = None,
) -> Callable[..., None]:
    """A native step that modes see as an operation, ``fusedopt::step_``.

    It is that of all parameters, or of the one at a place: the index of its group, and that in it.
    A mode that carries out what it sees has the native step, with all its bits.

    Raises:
        RuntimeError: as :func:`refuse`.
    """
    alone = None if only is None else groups[only[0]]["params"][only[1]]

    def moves(param: torch.Tensor) -> bool:
        return has_gradient(param) and (alone is None or alone is param)

    refuse(groups, state, moves)
    params = [param for group in groups for param in group["params"] if moves(param)]
    if torch._C._len_torch_dispatch_stack() and params:
        return functools.partial(_step_as_operation, step, params)
    return step


class _Pending(threading.local):
    """The step that the operation is to carry out in this thread."""

    step: Callable[[], None] | None = None


_pending = _Pending()


def _step_as_operation(step: Callable[..., None], params: list[Any], *arguments: Any) -> None:
    def memory(tensor: Any) -> Any:
        return getattr(tensor, "_local_tensor", tensor)  # a DTensor knows torch's operations only

    outer = _pending.step
    _pending.step = functools.partial(step, *arguments)
    try:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            operation = torch.ops.fusedopt.step_.default
            operation([memory(p) for p in params], [memory(p.grad) for p in params])
    finally:
        _pending.step = outer


def _carry_out(params: list[torch.Tensor], grads: list[torch.Tensor]) -> None:
    if _pending.step is None:
        raise RuntimeError("fusedopt::step_ is a part of an optimizer's step, which is over")
    _pending.step()


_library: Any = library.Library("fusedopt", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("step_(Tensor(a!)[] params, Tensor[] grads) -> ()")
_library.impl("step_", _carry_out, "CompositeExplicitAutograd")
