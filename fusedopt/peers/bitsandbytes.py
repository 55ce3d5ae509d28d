"""The checkpoints and optimizers of bitsandbytes, as of 0.50."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fusedopt.peers.quantized import Quantized, block_of

if TYPE_CHECKING:
    from collections.abc import Mapping

NAME = "bitsandbytes"
MODULE = "bitsandbytes.optim"

# How a class is called beside the optimizer that it is.
PREFIXES, SUFFIXES = ("Paged",), ("8bit", "32bit")

# What its constructors add to an object of torch's.
ATTRIBUTES = (
    "initialized", "name2qmap", "is_paged", "page_mng", "mng", "non_castable_tensor_keys", "args",
    "optimizer_name", "_cpu_paged_warned",
)  # fmt: skip

# Where state_dict() puts tensors that are not of the parameter's shape; earlier releases did not.
_NESTED = "__bnb_optimizer_quant_state__"

# Of AdEMAMix, which shares its class with all that have two states.
_NEUTRAL = {"alpha": 0, "t_alpha": None, "t_beta3": None}

# Up to where settings of an object mean what is done here.
_LARGEST = {"max_unorm": 0, "skip_zeros": False, "min_8bit_size": 4096}


class _Counterpart(NamedTuple):
    """A rule in the words of bitsandbytes.

    Attributes:
        states: what its ``state1`` and ``state2`` are here.
        fixed: options that it does not have, as they would have to be for its formula.
        betas: which options its two ``betas`` are here; None for one with which it computes
            nothing. Without any they are ours.
        unused: other keys of its groups with which it computes nothing.
    """

    states: tuple[str, ...]
    fixed: dict[str, Any]
    betas: tuple[str | None, ...] = ()
    unused: tuple[str, ...] = ()


_COUNTERPARTS = {
    "adam": _Counterpart(
        ("exp_avg", "exp_avg_sq"), {"amsgrad": False, "decoupled_weight_decay": True}
    ),
    "sgd": _Counterpart(
        ("momentum_buffer",), {"dampening": 0, "nesterov": False}, ("momentum", None), ("eps",)
    ),
    "rmsprop": _Counterpart(("square_avg",), {"momentum": 0, "centered": False}, ("alpha", None)),
    "adagrad": _Counterpart(
        ("sum",), {"lr_decay": 0, "initial_accumulator_value": 0}, (None, None)
    ),
}


def _counterpart(rule: str, where: str) -> _Counterpart:
    if rule not in _COUNTERPARTS:
        raise ValueError(f"{where}: {NAME} has no optimizer with the rule {rule!r}")
    return _COUNTERPARTS[rule]


def wrote(state_dict: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, or the parts of an optimizer under the same keys, are of its making."""
    return any(
        isinstance(states, dict) and (_NESTED in states or "state1" in states)
        for states in state_dict.get("state", {}).values()
    ) or any("t_alpha" in group for group in state_dict.get("param_groups", ()))


def options(group: Mapping[str, Any], rule: str, where: str) -> dict[str, Any]:
    """A parameter group with options of this package, under the names of torch's.

    Args:
        group: of its checkpoint or object. What it does not know is kept.
        rule: the name of the rule here.
        where: which group it is, for messages.

    Raises:
        NotImplementedError: an option that has no counterpart here, or no influence there.
        ValueError: a number of ``betas`` other than two; a rule that it does not have.
    """
    counterpart = _counterpart(rule, where)
    for name, neutral in _NEUTRAL.items():
        if group.get(name, neutral) != neutral:
            raise NotImplementedError(
                f"{where}: {NAME}' {name}={group[name]} of AdEMAMix has no counterpart"
            )
    betas = tuple(group["betas"])
    if len(betas) != 2:
        raise ValueError(f"{where}: betas={betas} of {NAME} are not two numbers")
    dropped = {"betas", *_NEUTRAL, *counterpart.unused}
    ours = {name: value for name, value in group.items() if name not in dropped}
    ours |= counterpart.fixed | {"maximize": False}
    if not counterpart.betas:
        return ours | {"betas": betas}
    for index, option in enumerate(counterpart.betas):
        if option is not None:
            ours[option] = betas[index]
        elif betas[index]:
            raise NotImplementedError(
                f"{where}: {NAME} computes nothing with betas[{index}]={betas[index]} in the rule "
                f"{rule!r}; a 0 in its place goes on in the same way"
            )
    return ours


def states(theirs: Mapping[str, Any], rule: str, where: str) -> dict[str, torch.Tensor | Quantized]:
    """The states of one parameter, under their names here, with the step count as a tensor.

    Raises:
        NotImplementedError: an entry that belongs to a feature without counterpart.
        ValueError: an entry that is missing, or does not fit the others.
    """
    flat = {**theirs, **theirs.get(_NESTED, {})}
    flat.pop(_NESTED, None)
    if not flat:
        return {}
    names = _counterpart(rule, where).states
    known = {f"{part}{n + 1}" for part in ("state", "qmap", "absmax") for n in range(len(names))}
    for key in flat:
        if key not in known | {"step"}:
            raise NotImplementedError(
                f"{where}: {NAME}' state {key!r} has no counterpart in the rule {rule!r}"
            )
    if "step" not in flat:
        raise ValueError(f"{where}: its state of {NAME} has no 'step'")
    step = int(flat["step"])
    # As torch counts; from there on float32 holds no odd numbers.
    counts_in = torch.float32 if step < 2**24 else torch.float64
    ours: dict[str, torch.Tensor | Quantized] = {
        "step": torch.tensor(step, dtype=counts_in, device="cpu")
    }
    for number, name in enumerate(names, 1):
        ours[name] = _state(flat, str(number), where)
    return ours


def _state(flat: Mapping[str, Any], number: str, where: str) -> torch.Tensor | Quantized:
    def entry(part: str) -> torch.Tensor:
        tensor = flat.get(part + number)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{where}: its state of {NAME} has no {part + number!r}")
        return tensor

    state = entry("state")
    if hasattr(state, "_local_tensor"):
        raise NotImplementedError(f"{where}: 'state{number}' of {NAME} is a DTensor")
    if not state.is_contiguous():
        # Its engine for GPUs walks memory, that for CPUs the elements.
        raise NotImplementedError(
            f"{where}: 'state{number}' is not contiguous, and {NAME} orders the elements of such "
            "states otherwise on a GPU than on a CPU"
        )
    if state.dtype != torch.uint8:
        return state
    table, scales = entry("qmap"), entry("absmax")
    block = block_of(state.numel(), scales.numel())
    if block is None or scales.ndim != 1 or table.shape != (256,):
        raise ValueError(
            f"{where}: 'state{number}' of shape {tuple(state.shape)} does not fit 'absmax{number}' "
            f"of shape {tuple(scales.shape)} and 'qmap{number}' of shape {tuple(table.shape)}"
        )
    return Quantized(state, table.float(), scales.float(), block)


def storage(optimizer: Any) -> dict[str, Any]:
    """The options of storage that an object of its classes stands for.

    Raises:
        NotImplementedError: a setting that has no counterpart.
    """
    args = optimizer.args
    for name, bound in _LARGEST.items():
        value = getattr(args, name, bound)
        if value > bound:
            raise NotImplementedError(f"{NAME}' {name}={value} has no counterpart")
    if getattr(args, "percentile_clipping", 100) < 100:
        raise NotImplementedError(
            f"{NAME}' percentile_clipping={args.percentile_clipping} has no counterpart"
        )
    manager = optimizer.mng
    for index, group in enumerate(optimizer.param_groups):
        for position, param in enumerate(group["params"]):
            overrides = {
                **manager.index2config.get((index, position), {}),
                **manager.pid2config.get(id(param), {}),
            }
            if overrides:
                raise NotImplementedError(
                    f"parameter group {index}, parameter {position}: {NAME}' GlobalOptimManager "
                    f"overrides {', '.join(overrides)}; give it a parameter group of its own"
                )
    if manager.module_weight_config_triple and not optimizer.initialized:
        raise NotImplementedError(
            f"{NAME}' GlobalOptimManager overrides parameters of modules; give them a parameter "
            "group of their own"
        )
    return {"state_bits": args.optim_bits}
