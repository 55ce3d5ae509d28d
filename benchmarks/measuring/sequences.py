"""What is called between backward and the next forward, as a whole; and the norm alone."""

from __future__ import annotations

import gc
from collections.abc import Sequence as Many
from functools import partial
from typing import Any

import torch

import fusedopt

from ..contestants.contests import OURS, TORCH, TOUCH, TRAINED
from ..contestants.sequences import (
    SEQUENCES,
    Contestant,
    Sequence,
    floor,
    gradients_of,
    ours,
    params_of,
    read,
    torchs,
)
from ..workloads.tensors import WORKLOADS, Workload
from .describe import derive, derive_ratios, describe_timing, moved_bytes
from .measure import (
    Conditions,
    Groups,
    LackOfMemoryError,
    backward_pass,
    bytes_available,
    make_copies,
    make_groups,
)
from .progress import Bars
from .sequence_checks import Who, check_norms, check_sequences
from .shared_states import SharedStates
from .timing import SingleStepClock, Step, Timing, extend, interleave

STEPPED = ("gpt2-124m", "resnet-50", "1000x64", "mlp")
NORMS = ("one-64m", "gpt2-124m", "one-64m-bfloat16", "gpt2-124m-bfloat16")
LARGE = "gpt2-124m"  # which a quick run leaves out

# Torch's fastest implementation; a whole training step is timed with others, too.
FUSED = "fused"

# At this rate the gradients of a model stay what they are, and go on being clipped.
SLOW_RATE = 1e-9
TRAINED_MODEL = "MLP"
TRAINING = Sequence("forward, backward, clip, step, zero_grad")

# Parameters, gradients twice, states of each format, and those that peers make before they share.
_BYTES_PER_ELEMENT = 64


def sequences(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Every sequence on tensors of four kinds, the norm alone, and a whole training step."""
    rows = []
    for name in STEPPED:
        if not (conditions.quick and name == LARGE):
            rows += measure(WORKLOADS[name], SEQUENCES, conditions, bars)
    for name in NORMS:
        if not (conditions.quick and name.startswith(LARGE)):
            rows.append(measure_norm(WORKLOADS[name], conditions, bars))
    return [*rows, measure_training(conditions, bars)]


class Gradients:
    """Gradients that are made anew ahead of each sequence, as a backward pass makes them.

    Without that, those that torch has clipped once would need no clipping any more.
    """

    def __init__(self, groups: Groups) -> None:
        self._grads = [param.grad for group in groups for param in group["params"]]
        self._kept = [grad.clone() for grad in self._grads]

    @property
    def max_norm(self) -> float:
        """Half of their norm, so that each sequence clips."""
        return fusedopt.get_total_norm(self._kept).item() / 2

    def renew(self) -> None:
        """Writes all of them."""
        torch._foreach_copy_(self._grads, self._kept)


def measure(
    workload: Workload, chosen: Many[Sequence], conditions: Conditions, bars: Bars
) -> list[dict[str, Any]]:
    """Times sequences on one workload in float32, all in the same rounds.

    Returns:
        A row for each sequence; times in seconds.

    Raises:
        LackOfMemoryError: there is not the memory for all of them at once.
    """
    needed, there = workload.elements * _BYTES_PER_ELEMENT, bytes_available("cpu")
    if needed > there:
        raise LackOfMemoryError(f"sequences on {workload.name}", needed, there)
    gc.collect()
    bars.start(f"{workload.name}: {len(chosen)} sequences")
    contestants = contestants_of(chosen, (FUSED,))
    reasons = check_sequences(contestants)
    fit = {who: each for who, each in contestants.items() if who not in reasons}
    places = [make_groups(workload, torch.float32), *make_copies(workload, torch.float32)]
    settings = conditions.settings.shared_by(len(places))
    timings: dict[Who, Timing] = {}
    for groups in places:
        gradients = Gradients(groups)
        optimizers = start(fit, groups)
        steps = runs_of(fit, optimizers, gradients.max_norm) | floors_of(chosen, optimizers)
        clock = SingleStepClock(gradients.renew)
        first = chosen[0].name, TOUCH
        extend(timings, interleave(steps, settings, bars.advance, clock, floor=first))
    return [
        _row(workload, sequence, timings, reasons, optimizers[sequence.name, OURS])
        for sequence in chosen
    ]


def contestants_of(chosen: Many[Sequence], peers: Many[str]) -> dict[Who, Contestant]:
    """This package on each sequence, and torch's implementations on what it does for them."""
    found = {(sequence.name, OURS): ours(sequence) for sequence in chosen}
    for sequence in chosen:
        for peer in peers:
            found[sequence.in_torch, peer] = torchs(sequence, peer)
    return found


def start(contestants: dict[Who, Contestant], groups: Groups) -> dict[Who, Any]:
    """Optimizers that have taken a step, with states in one memory for each format."""
    # Those that average have one state more.
    shared, optimizers = {averages: SharedStates() for averages in (False, True)}, {}
    for who, contestant in contestants.items():
        optimizers[who] = contestant.start(groups)
        shared[contestant.sequence.averages].share(optimizers[who])
    return optimizers


def runs_of(
    contestants: dict[Who, Contestant], optimizers: dict[Who, Any], max_norm: float
) -> dict[Who, Step]:
    """The sequence of each contestant, as one call."""
    return {
        who: contestant.run_of(optimizers[who], max_norm) for who, contestant in contestants.items()
    }


def floors_of(chosen: Many[Sequence], optimizers: dict[Who, Any]) -> dict[Who, Step]:
    """What only moves the bytes of each sequence."""
    return {
        (sequence.name, TOUCH): floor(sequence, optimizers[sequence.name, OURS])
        for sequence in chosen
    }


def _row(
    workload: Workload,
    sequence: Sequence,
    timings: dict[Who, Timing],
    reasons: dict[Who, str],
    optimizer: Any,
) -> dict[str, Any]:
    of_norm = sum(grad.nbytes for grad in gradients_of(optimizer))
    own = {who: timing for (name, who), timing in timings.items()
           if name == (sequence.in_torch if who in TORCH else sequence.name)}  # fmt: skip
    return {
        **_head(workload, sequence.name),
        **derive(own, of_norm + moved_bytes(optimizer)),
        "peers": {who: describe_timing(timing) for who, timing in own.items()},
        "not_timed": {who: reason for (name, who), reason in reasons.items()
                      if name == sequence.in_torch},
    }  # fmt: skip


def _head(workload: Workload, name: str) -> dict[str, Any]:
    sizes = {"tensors": workload.tensors, "elements": workload.elements}
    return {"workload": workload.name, **sizes, "sequence": name, "optimizer": TRAINED}


def measure_norm(workload: Workload, conditions: Conditions, bars: Bars) -> dict[str, Any]:
    """One row: the norm of all gradients, beside a pass that only reads them."""
    bars.start(f"{workload.name}: norm")
    dtype = getattr(torch, workload.dtype or "float32")
    torch.manual_seed(0)
    shapes = [shape for group in workload.groups for shape in group]
    grads = [torch.randn(shape, dtype=dtype) for shape in shapes]
    norms = {OURS: fusedopt.get_total_norm, FUSED: torch.nn.utils.get_total_norm}
    reasons = check_norms(norms, dtype)
    steps: dict[str, Step] = {
        who: partial(norm, grads) for who, norm in norms.items() if who not in reasons
    }
    steps[TOUCH] = partial(read, grads)
    timings = interleave(steps, conditions.settings, bars.advance, floor=TOUCH)
    return {
        **_head(workload, "norm"),
        **derive(timings, sum(grad.nbytes for grad in grads)),
        "peers": {who: describe_timing(timing) for who, timing in timings.items()},
        "not_timed": reasons,
    }


def measure_training(conditions: Conditions, bars: Bars) -> dict[str, Any]:
    """One row: whole training steps of a model, beside torch's implementations."""
    bars.start(f"{TRAINED_MODEL}: training steps")
    torch.manual_seed(0)
    model, backward = backward_pass(TRAINED_MODEL)
    backward()
    groups = [{"params": [*model.parameters()], "lr": SLOW_RATE}]
    peers = [peer for peer in conditions.peers if peer in TORCH]
    contestants = contestants_of([TRAINING], [*dict.fromkeys((*peers, FUSED))])
    reasons = check_sequences(contestants)
    fit = {who: each for who, each in contestants.items() if who not in reasons}
    optimizers = start(fit, groups)
    runs = runs_of(fit, optimizers, Gradients(groups).max_norm)
    steps = {
        who: partial(_training_step, backward, runs[name, who], optimizer.zero_grad)
        for (name, who), optimizer in optimizers.items()
    }
    timings = interleave(steps, conditions.settings, bars.advance)
    params = params_of(optimizers[TRAINING.name, OURS])
    return {
        "workload": TRAINED_MODEL,
        "tensors": len(params),
        "elements": sum(param.numel() for param in params),
        "sequence": TRAINING.name,
        "optimizer": TRAINED,
        **derive_ratios(timings),
        "peers": {who: describe_timing(timing) for who, timing in timings.items()},
        "not_timed": {who: reason for (_, who), reason in reasons.items()},
    }


def _training_step(backward: Step, run: Step, zero_grad: Step) -> None:
    backward()
    run()
    zero_grad()
