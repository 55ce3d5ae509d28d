"""The norm of tensors and clipping by it, for those who clip by themselves."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _native
from fusedopt.forks import torch_on_one_thread_if_forked
from fusedopt.modes import sees_operations
from fusedopt.optimizers import shards
from fusedopt.optimizers.clipping import SumsOverRanks, new_decision
from fusedopt.optimizers.local_tensors import local_tensor

if TYPE_CHECKING:
    from collections.abc import Iterable


def _as_list(tensors: torch.Tensor | Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)


def _without_partial_sums(tensor: Any) -> Any:
    """A DTensor whose parts are all there, or the tensor itself."""
    placements = getattr(tensor, "placements", ())
    if not any(placement.is_partial() for placement in placements):
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(
        placements=[
            Replicate() if placement.is_partial() else placement for placement in placements
        ]
    )


Number = float | torch.Tensor


def _are_plain(tensors: list[torch.Tensor]) -> bool:
    """Whether none of them is a DTensor or of another class, which have to be asked."""
    return all(type(tensor) is torch.Tensor for tensor in tensors)


@torch.no_grad()
def _norm_and_factor(tensors: list[torch.Tensor], max_norm: float) -> tuple[Number, Number]:
    """Of all tensors; as numbers of float64 on a GPU, if the host need not wait for it."""
    sums = SumsOverRanks()
    parts, numbers = tensors, [0] * len(tensors)
    if not _are_plain(tensors):
        whole = [_without_partial_sums(tensor) for tensor in tensors]
        numbers = [sums.sum_of(tensor) for tensor in whole]
        parts = [local_tensor(tensor) for tensor in whole]
    if not any(numbers):
        decision = _native.decide_on_device(parts, max_norm, new_decision)
        if decision is not None:
            return decision[0], decision[1]
    measured = _native.sums_of_squares(parts, numbers)
    norm = _native.norm_of_squares(sums.total(measured) if any(numbers) else measured[0])
    return norm, _native.clip_factor(max_norm, norm)


def _as_tensor(norm: Number, tensors: list[torch.Tensor]) -> torch.Tensor:
    """In the dtype that torch's functions promote to, or float32 if that has 16 bits."""
    dtypes = {torch.float32, *(tensor.dtype for tensor in tensors)}
    dtype = functools.reduce(torch.promote_types, dtypes)
    return torch.as_tensor(norm, dtype=dtype, device=tensors[0].device)


def _is_for_torch(norm_type: float) -> bool:
    """Whether it is torch's function that is asked for, or that something has to see."""
    return float(norm_type) != 2.0 or sees_operations()


def get_total_norm(
    tensors: torch.Tensor | Iterable[torch.Tensor],
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """The norm of all tensors together, in place of ``torch.nn.utils.get_total_norm``.

    The 2-norm has the same bits on any number of threads and instruction set, and in any order of
    the tensors; it is that of :func:`fusedopt.reference.total_norm`, rounded once. Of DTensors the
    squares of all ranks are added up, exactly, by an all-reduce, and every rank gets the norm as a
    plain tensor. Norms of another type are those of torch's function, and so are all where a mode
    records or fakes operations (``make_fx``, ``FakeTensorMode``) or inside of ``torch.func``.

    Args:
        tensors: of any layout in memory and any of float32, float64, bfloat16, float16, on the CPU
            and on GPUs.
        norm_type: the type of the norm.
        error_if_nonfinite: raise an error if the norm is infinite or NaN.
        foreach: accepted; selects no implementation of the 2-norm, because there is only one.

    Returns:
        A 0-dim tensor in the widest dtype of the tensors, and at least float32, on the first one's
        device. If all are on one GPU and whole there, nothing waits for it.

    Raises:
        RuntimeError: the norm is NaN, or infinite in the dtype that it is returned in, and
            ``error_if_nonfinite``; or a tensor is sparse, complex or of integers. While a CUDA
            graph is captured: tensors on several devices, or cut up over ranks.
        NotImplementedError: a tensor on a device for which there is no engine.
    """
    tensors = _as_list(tensors)
    if _is_for_torch(norm_type) or not tensors:
        with torch_on_one_thread_if_forked():
            return torch.nn.utils.get_total_norm(tensors, norm_type, error_if_nonfinite, foreach)
    norm, _ = _norm_and_factor(tensors, math.inf)
    return _checked(_as_tensor(norm, tensors), error_if_nonfinite)


def _checked(norm: torch.Tensor, error_if_nonfinite: bool) -> torch.Tensor:
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise RuntimeError(
            "The total norm of order 2.0 for gradients from `parameters` is non-finite, so it "
            "cannot be clipped. To disable this error and scale the gradients by the non-finite "
            "norm anyway, set `error_if_nonfinite=False`"
        )
    return norm


def _multiply(grads: list[torch.Tensor], factor: Number) -> None:
    """In place, rounded once: torch would round the factor to 16 bits first.

    Raises:
        RuntimeError: a gradient whose elements share memory; nothing is changed.
    """
    has_overlap = torch._debug_has_internal_overlap
    for index, grad in enumerate(grads):
        if has_overlap(grad) == 1:
            raise RuntimeError(f"gradient {index}: its elements share memory")
    wide = defaultdict(list)
    for grad in grads:
        if grad.element_size() > 2:
            wide[grad.device, grad.dtype].append(grad)
    for (_, dtype), together in wide.items():
        torch._foreach_mul_(together, _in(dtype, factor))
    for grad in grads:
        if grad.element_size() == 2:
            grad.copy_(grad.float() * _in(torch.float32, factor))


def _in(dtype: torch.dtype, factor: Number) -> Number:
    return factor.to(dtype) if isinstance(factor, torch.Tensor) else factor


def clip_grad_norm_(
    parameters: torch.Tensor | Iterable[torch.Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> torch.Tensor:
    """Clips gradients in place, instead of ``torch.nn.utils.clip_grad_norm_``.

    They are multiplied by ``max_norm / (norm + 1e-6)`` where that is below 1, and are left alone
    otherwise; on a GPU that nothing waits for they are multiplied by 1. The norm is that of
    :func:`get_total_norm`. An optimizer's own ``max_grad_norm`` reads the gradients once less, and
    does not write them.

    Args:
        parameters: those whose gradients are clipped.
        max_norm: the largest norm that is left; an infinite one clips nothing.
        norm_type: the type of the norm; another one than 2 is left to torch's function, which takes
            the place of this one wherever it does of :func:`get_total_norm`.
        error_if_nonfinite: raise an error if the norm is infinite or NaN, and change nothing.
        foreach: accepted; selects no implementation for the 2-norm, because there is only one.

    Returns:
        The norm before clipping, as from :func:`get_total_norm`.

    Raises:
        RuntimeError, NotImplementedError: as :func:`get_total_norm`; or the elements of a gradient
            that is to be clipped share memory. Nothing is changed then.
    """
    parameters = _as_list(parameters)
    if _is_for_torch(norm_type):
        with torch_on_one_thread_if_forked():
            return torch.nn.utils.clip_grad_norm_(
                parameters, max_norm, norm_type, error_if_nonfinite, foreach
            )
    grads = [grad for param in parameters if (grad := param.grad) is not None]
    if not grads:
        return torch.tensor(0.0, device="cpu")
    norm, factor = _norm_and_factor(grads, float(max_norm))
    rounded = _checked(_as_tensor(norm, grads), error_if_nonfinite)
    if isinstance(factor, torch.Tensor) or factor != 1.0:
        with torch.no_grad(), torch_on_one_thread_if_forked():
            _multiply(grads if _are_plain(grads) else list(map(shards.local, grads)), factor)
    return rounded
