"""One case: an optimizer and its peers on one workload."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..contestants.contests import COMPILED, CONTESTS, DEFAULT_PEERS, OURS, TOUCH
from ..contestants.others import OTHERS, Factory
from ..workloads.models import MODELS
from ..workloads.tensors import Workload
from .checks import Warm, check, warm_again, warm_up
from .describe import derive, derive_ratios, describe_timing, state_bytes
from .shared_states import share_states
from .timing import (
    Settings,
    SingleStepClock,
    Step,
    Timing,
    clock_of,
    extend,
    interleave,
)

Groups = list[dict[str, Any]]

# Called with the rounds done and their total.
Advance = Callable[[int, int], None]

# Small enough that values stay ordinary numbers over the many steps of a small workload, large
# enough that a velocity, which has it as a factor, is no subnormal number in float16.
LR = 1e-4

COPIES, FEW_ELEMENTS = 4, 2**22

# torch.compile's time grows with the tensors: beyond, it is minutes.
MOST_COMPILED = 200


class LackOfMemoryError(Exception):
    """There is not the memory to measure something; the message is a line about it."""

    def __init__(self, name: str, needed: int, there: int) -> None:
        lack = f"needs about {needed / 2**30:.0f} GiB, {there / 2**30:.0f} are free"
        super().__init__(f"{name}: {lack}")


@dataclass(frozen=True)
class Conditions:
    """What all cases of a run have in common.

    Attributes:
        settings: how much is measured.
        dtype: of parameters, gradients and states.
        device: "cpu" or "cuda".
        peers: names of those that are timed beside this package and the floors.
        quick: whether parts are to take less.
    """

    settings: Settings
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    peers: tuple[str, ...] = DEFAULT_PEERS
    quick: bool = False


def make_groups(workload: Workload, dtype: torch.dtype, device: str = "cpu") -> Groups:
    """Parameter groups with normally distributed values and gradients, each with its own rate."""
    torch.manual_seed(0)
    groups = []
    for index, shapes in enumerate(workload.groups):
        params = [torch.randn(shape, dtype=dtype, device=device) for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        groups.append({"params": params, "lr": LR * (1 + index / len(workload.groups))})
    return groups


def make_copies(workload: Workload, dtype: torch.dtype, device: str = "cpu") -> list[Groups]:
    """The same groups again, elsewhere in memory, for workloads whose time depends on where.

    Many small tensors are faster or slower by a factor according to which of them share a cache's
    set or a page; large ones are not.
    """
    count = COPIES if is_small(workload, device) else 0
    return [make_groups(workload, dtype, device) for _ in range(count)]


def is_small(workload: Workload, device: str) -> bool:
    """Whether the time of a step depends on where its tensors lie, and on what ran before."""
    return workload.tensors > 1 and workload.elements <= FEW_ELEMENTS and device == "cpu"


def bytes_needed(workload: Workload, optimizer: str, conditions: Conditions) -> int:
    """Memory for parameters, gradients, the states that peers share, and temporaries.

    Each peer makes states of its own before it takes the shared ones, and a compiled one keeps
    them. Torch's foreach has temporaries of twice the size of all parameters.
    """
    contest = CONTESTS[optimizer]
    sets = 3 if COMPILED in conditions.peers else 2
    tensors = 2 + sets * contest.states + 2
    return workload.elements * conditions.dtype.itemsize * tensors


def bytes_available(device: str) -> int:
    """Memory that can be had without swapping, on the host or on the current GPU."""
    if device == "cuda":
        kept_for_reuse = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return int(torch.cuda.mem_get_info()[0]) + kept_for_reuse
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo does not say how much memory is available")


def measure_case(
    workload: Workload,
    optimizer: str,
    groups: Groups,
    conditions: Conditions,
    advance: Advance,
    peers: dict[str, Factory] | None = None,
    copies: Sequence[Groups] = (),
) -> dict[str, Any]:
    """Times one optimizer and its peers on one workload.

    Args:
        workload: what ``groups`` were made from.
        optimizer: a name in ``CONTESTS``.
        groups: what ``make_groups`` made; all peers step these same parameters.
        conditions: dtype and device are those of ``groups``.
        advance: called after every round.
        peers: who is timed, in place of those whom the conditions name.
        copies: what ``make_copies`` made.

    Returns:
        One row of the result; times in seconds per step.
    """
    gc.collect()  # what earlier cases have left would hold memory
    contest = CONTESTS[optimizer]
    param = groups[0]["params"][0]
    device = param.device.type
    peers = peers or contest.peers(device, conditions.peers)
    reasons = {}
    if COMPILED in peers and workload.tensors > MOST_COMPILED:
        peers = {name: factory for name, factory in peers.items() if name != COMPILED}
        reasons[COMPILED] = f"takes minutes to compile for more than {MOST_COMPILED} tensors"
    reasons |= check(peers, param.dtype, device)
    settings = conditions.settings.shared_by(1 + len(copies))
    fit = {name: factory for name, factory in peers.items() if name not in reasons}
    started, raised = start_all(fit, groups, settings.warmup)
    reasons |= raised
    timings: dict[str, Timing] = {}
    optimizers = {name: warm.optimizer for name, warm in started.items()}
    cold = measure_cold(optimizers, conditions, advance) if is_small(workload, device) else {}
    for copy in (groups, *copies):
        if copy is not groups:
            again = {name: peers[name] for name in started}
            optimizers = start_again(again, copy, settings.warmup)
        steps = _steps_of(optimizers)
        extend(timings, interleave(steps, settings, advance, clock_of(device), floor=TOUCH))
    elements = workload.elements
    return {
        "workload": workload.name,
        "optimizer": optimizer,
        "tensors": workload.tensors,
        "elements": elements,
        "groups": len(workload.groups),
        **derive(timings, contest.ideal_bytes(elements, param.itemsize)),
        "peers": {
            name: {
                **describe_timing(timing),
                "first_step": started[name].first_step,
                "state_bytes_per_parameter": started[name].state_bytes / elements,
            }
            for name, timing in timings.items()
        },
        **cold,
        "not_timed": reasons,
        "low_bit": [name for name in timings if name in OTHERS and OTHERS[name].low_bit],
    }


def start_all(
    peers: dict[str, Factory], groups: Groups, warmup: int
) -> tuple[dict[str, Warm], dict[str, str]]:
    """Optimizers that have taken some steps, which share their states; and why some have not."""
    started: dict[str, Warm] = {}
    reasons: dict[str, str] = {}
    for name, factory in peers.items():
        warm = warm_up(name, factory, groups, warmup)
        if isinstance(warm, str):
            reasons[name] = warm
        else:
            started[name] = replace(warm, state_bytes=state_bytes(warm.optimizer))
            _share(started[OURS].optimizer, name, warm.optimizer)
    return started, reasons


def start_again(peers: dict[str, Factory], groups: Groups, warmup: int) -> dict[str, Any]:
    """The same on other groups, for peers that could be started before."""
    optimizers: dict[str, Any] = {}
    for name, factory in peers.items():
        optimizers[name] = warm_again(factory, groups, warmup)
        _share(optimizers[OURS], name, optimizers[name])
    return optimizers


def _share(owner: Any, name: str, other: Any) -> None:
    """One set of states for all but those who would be compiled again for it."""
    if other is not owner and name != COMPILED:
        share_states(owner, other)


def _steps_of(optimizers: dict[str, Any]) -> dict[str, Step]:
    return {name: optimizer.step for name, optimizer in optimizers.items()}


def measure_cold(
    optimizers: dict[str, Any], conditions: Conditions, advance: Advance
) -> dict[str, Any]:
    """What single steps take after the backward pass of a small model, as ``cold`` of a row."""
    settings = conditions.settings
    rounds = max(settings.min_rounds, settings.max_rounds // 2)
    once = replace(settings, measurement=0.0, min_rounds=rounds, max_rounds=rounds)
    _, backward = backward_pass("MLP")
    clock = SingleStepClock(backward)
    timings = interleave(_steps_of(optimizers), once, advance, clock)
    derived = derive_ratios(timings)
    peers = {name: describe_timing(timing) for name, timing in timings.items()}
    return {"cold": {**derived, "peers": peers}}


def backward_pass(name: str) -> tuple[nn.Module, Step]:
    """A model of ``MODELS``; and its forward and backward, to be called again and again."""
    make, batch = MODELS[name]
    model, (inputs, targets), loss_of = make(), batch(), nn.CrossEntropyLoss()

    def run() -> None:
        loss_of(model(inputs), targets).backward()

    return model, run
