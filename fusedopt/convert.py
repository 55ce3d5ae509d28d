"""A live optimizer of ``torch.optim``, bitsandbytes or torchao becomes one of this package."""

from __future__ import annotations

import functools
import re
import sys
import weakref
from typing import TYPE_CHECKING, Any, cast

import torch

from fusedopt import _native
from fusedopt.checking.rows import DTYPES, ROWS
from fusedopt.forks import torch_on_one_thread_if_forked
from fusedopt.optimizers import epilogue, storage
from fusedopt.optimizers.base import FusedOptimizer, check_group
from fusedopt.optimizers.foreign import translated_from
from fusedopt.peers import bitsandbytes, torchao

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

_OURS: dict[type[torch.optim.Optimizer], type[FusedOptimizer]] = {
    row.torch_optimizer: row.optimizer for row in ROWS if row.torch_optimizer
}


def from_torch(optimizer: torch.optim.Optimizer) -> FusedOptimizer:
    """Turns an optimizer of ``torch.optim`` into the class of this package with the same name.

    At any time between two steps, also in mid-training:

    .. code-block:: python

        optimizer = torch.optim.AdamW(model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
        fusedopt.from_torch(optimizer)

    The object is converted in place, by a change of its class, and returned. A scheduler, a
    gradient scaler (which knows optimizers by their ``id``) or a trainer that holds the optimizer
    therefore holds the converted one; a second object would share their parameter groups at best
    until ``load_state_dict`` replaces them. Parameters, group dictionaries, state, defaults, and
    registered hooks with their handles stay the objects they were. Training goes on to the bit as
    with a new optimizer of this package that has loaded the old one's ``state_dict()``. Of what has
    been copied from the old object, nothing is converted: a method that was taken from it before,
    such as ``step = optimizer.step``, is torch's still.

    Args:
        optimizer: one of ``torch.optim`` whose class this package has, too. One of this package is
            returned as it is.

    Returns:
        The same object.

    Raises:
        TypeError: an optimizer of any other class. A class derived from torch's is refused too,
            since what it adds would be lost; so is an object whose ``step`` has been replaced,
            other than by a scheduler of torch.
        NotImplementedError: a group with ``differentiable=True`` or a complex parameter.
        ValueError: a parameter that is a negated view, or a state of a dtype that no kernel reads.

    An optimizer that is refused is left as it was.
    """
    if isinstance(optimizer, FusedOptimizer):
        return optimizer
    ours = _OURS.get(type(optimizer))
    if ours is None:
        names = ", ".join(theirs.__name__ for theirs in _OURS)
        raise TypeError(
            f"from_torch takes an optimizer of torch.optim itself ({names}), "
            f"not of class {type(optimizer).__module__}.{type(optimizer).__qualname__}"
        )
    for index, group in enumerate(optimizer.param_groups):
        check_group(group, index, "from_torch")
        _check_params(optimizer.state, group, index)
    converted = _change_class(optimizer, ours, _is_tracked_by_scheduler(optimizer))
    for group in converted.param_groups:  # torch may have loaded averages of ours
        for param in group["params"]:
            if states := converted.state.get(param):
                states.update(epilogue.converted(states, param, group))
    return converted


def from_bitsandbytes(optimizer: torch.optim.Optimizer) -> FusedOptimizer:
    """Turns an optimizer of bitsandbytes into the class of this package with the same formula.

    In place and at any time, as :func:`from_torch` does it, with schedulers and hooks. Its classes
    in 8 bits become ``state_bits=8``, those in 32 bits ``state_bits=32``; paged ones become what
    they are without pages. Codes stay what they are where the state has the same sign there and
    here, and are encoded anew elsewhere.

    bitsandbytes decouples the weight decay of all its classes with two states, whatever their name,
    and so does what becomes of them, by the option ``decoupled_weight_decay``.

    Args:
        optimizer: of a class of ``bitsandbytes.optim`` itself. One of this package is returned as
            it is.

    Returns:
        The same object.

    Raises:
        TypeError: an optimizer of any other class, also one derived from theirs; or an object whose
            ``step`` has been replaced, other than by a scheduler of torch.
        NotImplementedError: what has no counterpart, by name: ``max_unorm``, ``skip_zeros``,
            ``percentile_clipping``, overrides of ``GlobalOptimManager``, ``min_8bit_size`` above
            4,096; ``betas`` with which bitsandbytes computes nothing; complex parameters.
        ValueError: a state that does not fit.

    An optimizer that is refused is left as it was.
    """
    return _from_peer(optimizer, bitsandbytes)


def from_torchao(optimizer: torch.optim.Optimizer) -> FusedOptimizer:
    """Turns an optimizer of torchao into the class of this package with the same formula.

    In place and at any time, as :func:`from_torch` does it, with schedulers and hooks. All become
    ``state_bits=8``: states in 8 bits with blocks of 256 keep their codes, and states with other
    blocks, in 4 bits or in floats of 8 are encoded anew. ``bf16_stochastic_round`` becomes
    ``stochastic_rounding``. A group's learning rate stays the tensor that it is.

    Args:
        optimizer: of a class of ``torchao.optim`` itself. One of this package is returned as it is.

    Returns:
        The same object.

    Raises:
        TypeError: an optimizer of any other class, also one derived from theirs; or an object whose
            ``step`` has been replaced, other than by a scheduler of torch.
        NotImplementedError: states of DTensors; complex parameters.
        ValueError: a state that does not fit.

    An optimizer that is refused is left as it was.
    """
    return _from_peer(optimizer, torchao)


def _from_peer(optimizer: torch.optim.Optimizer, peer: ModuleType) -> FusedOptimizer:
    if isinstance(optimizer, FusedOptimizer):
        return optimizer
    ours = _counterpart(type(optimizer), peer)
    tracked = _is_tracked_by_scheduler(optimizer)
    # What torch's class has beside the options that the peer knows.
    make: Callable[..., FusedOptimizer] = ours
    blank = make([torch.empty(0)]).defaults | storage.asked_for(peer.storage(optimizer))
    parts = {"state": optimizer.state, "param_groups": optimizer.param_groups}
    translated, _ = translated_from(peer, ours._rule, parts)
    defaults = {**blank, **peer.options(optimizer.defaults, ours._rule, "the defaults")}
    groups = [{**blank, **group} for group in translated["param_groups"]]
    for index, group in enumerate(groups):
        check_group(group, index, f"from_{peer.NAME}")
        _check_params(translated["state"], group, index)
    signs = _native.states(ours._rule)
    with torch_on_one_thread_if_forked():
        for group in groups:
            for param in group["params"]:
                states = translated["state"].get(param, {})
                for name in states.keys() - {"step"}:  # paged ones are on the CPU
                    states[name] = states[name].to(param.device)
                storage.convert(states, param, group, signs)

    for theirs, group in zip(optimizer.param_groups, groups, strict=True):
        theirs.clear()
        theirs.update(group)
        for param in group["params"]:
            if param in translated["state"]:
                states = optimizer.state[param]
                states.clear()
                states.update(translated["state"][param])
    optimizer.defaults.clear()
    optimizer.defaults.update(defaults)
    for name in peer.ATTRIBUTES:
        vars(optimizer).pop(name, None)
    return _change_class(optimizer, ours, tracked)


def _counterpart(theirs: type, peer: ModuleType) -> type[FusedOptimizer]:
    """Our class with the formula of a peer's, whose name says besides how states are stored."""
    prefixes, suffixes = "|".join(peer.PREFIXES), "|".join(peer.SUFFIXES)
    found = re.fullmatch(rf"(?:{prefixes}|)(\w+?)(?:{suffixes}|)", theirs.__name__)
    ours = {cls.__name__: cls for cls in _OURS.values()}
    is_theirs = getattr(sys.modules.get(peer.MODULE), theirs.__name__, None) is theirs
    if not (found and is_theirs and found[1] in ours):
        raise TypeError(
            f"from_{peer.NAME} takes an optimizer of {peer.MODULE} itself whose formula this "
            f"package has, not of class {theirs.__module__}.{theirs.__qualname__}"
        )
    return ours[found[1]]


def _change_class(
    optimizer: torch.optim.Optimizer, ours: type[FusedOptimizer], tracked: bool
) -> FusedOptimizer:
    supports_amp_scaling = vars(optimizer).pop("_step_supports_amp_scaling", None)
    optimizer.__class__ = ours
    if supports_amp_scaling is not None:
        optimizer._step_supports_amp_scaling = supports_amp_scaling  # type: ignore[attr-defined]
    optimizer._patch_step_function()
    if tracked:
        optimizer.step = _tracked_step(optimizer)  # type: ignore[method-assign]
    return cast("FusedOptimizer", optimizer)


def convert_states(optimizer: FusedOptimizer, **options: Any) -> FusedOptimizer:
    """Stores the states of an optimizer as the options of its groups ask, in mid-training.

    .. code-block:: python

        optimizer = fusedopt.from_torch(torch_optimizer)
        fusedopt.convert_states(optimizer, state_bits=8)

    States that exist are converted once, rounded to nearest; steps never convert, and refuse a
    state that is not stored as the options ask. A master that is no longer asked for is dropped,
    and with it what the parameter's dtype cannot hold.

    Args:
        optimizer: one of this package.
        options: ``state_bits``, ``stochastic_rounding``, ``master_weights`` or ``seed``, which are
            set in every group, and are the defaults of later ones; without any, groups stay as they
            are. ``state_bits=None`` is the parameter's dtype.

    Returns:
        The same object.

    Raises:
        TypeError: an unknown option.
        ValueError: options that do not fit a parameter. Nothing is changed then.
    """
    unknown = options.keys() - storage.DEFAULTS.keys()
    if unknown:
        raise TypeError(f"convert_states has no option {sorted(unknown)[0]!r}")
    for index, group in enumerate(optimizer.param_groups):
        storage.check_storage({**group, **options}, index)
    signs = _native.states(optimizer._rule)
    converted = []
    with torch_on_one_thread_if_forked():
        for group in optimizer.param_groups:
            for param in group["params"]:
                states = dict(optimizer.state.get(param, {}))
                otherwise = param.dtype if "state_bits" in options else None
                storage.convert(states, param, {**group, **options}, signs, otherwise)
                converted.append((param, states))
    for group in (*optimizer.param_groups, optimizer.defaults):
        group.update(options)
    for param, states in converted:
        if states:
            optimizer.state[param] = states
    return optimizer


def to_float32_state(optimizer: FusedOptimizer) -> FusedOptimizer:
    """Turns an optimizer into one whose ``state_dict()`` torch's class of the same name loads.

    All states become float32 and all options of storage their defaults; a master is dropped, so
    take ``optimizer.master_params()`` before.

    Returns:
        The same object.
    """
    convert_states(optimizer, **{**storage.DEFAULTS, "state_bits": 32})
    for group in (*optimizer.param_groups, optimizer.defaults):
        for name in storage.DEFAULTS:
            del group[name]
    if not _native.counts_steps(optimizer._rule):  # only rounding did
        for states in optimizer.state.values():
            states.pop("step", None)
    return optimizer


def _check_params(state: Mapping[Any, Any], group: dict[str, Any], index: int) -> None:
    for position, param in enumerate(group["params"]):
        where = f"parameter group {index}, parameter {position}"
        if param.is_complex():
            raise NotImplementedError(f"{where}: complex parameters are not supported")
        if param.is_neg():
            raise ValueError(f"{where}: is a negated view of its memory")
        states = state.get(param, {})
        for name, value in states.items():
            if name == "step" or not torch.is_tensor(value) or storage.scale_name(name) in states:
                continue
            if value.dtype not in DTYPES:
                raise ValueError(f"{where}: {name} has dtype {value.dtype}, which no kernel reads")


def _is_tracked_by_scheduler(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a scheduler has wrapped the object's ``step``, to see that it is called."""
    step = vars(optimizer).get("step")
    if step is None:
        return False
    wraps_torchs = getattr(step, "__wrapped__", None) is type(optimizer).step
    if not (wraps_torchs and hasattr(step, "_wrapped_by_lr_sched")):
        raise TypeError(f"step of this {type(optimizer).__name__} has been replaced by {step!r}")
    return True


def _tracked_step(optimizer: torch.optim.Optimizer) -> Callable[..., Any]:
    """What ``LRScheduler`` puts in place of ``step``, around the step of the new class.

    Its own wrapper holds the function of the old class.
    """
    reference = weakref.ref(optimizer)

    @functools.wraps(type(optimizer).step)
    def step(*args: Any, **kwargs: Any) -> Any:
        optimizer = reference()
        assert optimizer is not None
        optimizer._opt_called = True  # type: ignore[attr-defined]
        return type(optimizer).step(optimizer, *args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    return step
