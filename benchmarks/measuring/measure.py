"""One case: an optimizer and its peers on one workload."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..contestants.contests import COMPILED, CONTESTS, COPY, DEFAULT_PEERS, OURS, TORCH, TOUCH
from ..contestants.others import OTHERS, Factory
from ..workloads.tensors import Workload
from .checks import Warm, check, warm_again, warm_up
from .timing import Settings, Summary, Timing, clock_of, extend, interleave, ratio, summarize

Groups = list[dict[str, Any]]

# Called with the rounds done and their total.
Advance = Callable[[int, int], None]

# Small enough that values stay ordinary numbers over the many steps of a small workload, large
# enough that a velocity, which has it as a factor, is no subnormal number in float16.
LR = 1e-4

# Two times within this fraction of each other are a tie.
_TIE = 0.03

COPIES, FEW_ELEMENTS = 4, 2**22

# torch.compile's time grows with the tensors: beyond, it is minutes.
MOST_COMPILED = 200


@dataclass(frozen=True)
class Conditions:
    """What all cases of a run have in common.

    Attributes:
        settings: how much is measured.
        dtype: of parameters, gradients and states.
        device: "cpu" or "cuda".
        peers: names of those that are timed beside this package and the floors.
    """

    settings: Settings
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    peers: tuple[str, ...] = DEFAULT_PEERS


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
    is_small = workload.tensors > 1 and workload.elements <= FEW_ELEMENTS
    count = COPIES if is_small and device == "cpu" else 0
    return [make_groups(workload, dtype, device) for _ in range(count)]


def bytes_needed(workload: Workload, optimizer: str, conditions: Conditions) -> int:
    """Memory for parameters, gradients, the states of every peer, and temporaries.

    Torch's foreach has temporaries of twice the size of all parameters.
    """
    contest = CONTESTS[optimizer]
    stateful = len(contest.peers(conditions.device, conditions.peers))
    tensors = 2 + stateful * contest.states + 2
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
        One row of the result; times in seconds a step.
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
    warmup = settings.warmup
    tried = {
        name: warm_up(name, factory, groups, warmup)
        for name, factory in peers.items()
        if name not in reasons
    }
    reasons |= {name: reason for name, reason in tried.items() if isinstance(reason, str)}
    started = {name: warm for name, warm in tried.items() if isinstance(warm, Warm)}
    timings: dict[str, Timing] = {}
    optimizers = {name: warm.optimizer for name, warm in started.items()}
    for copy in (groups, *copies):
        if copy is not groups:
            optimizers = {name: warm_again(peers[name], copy, warmup) for name in started}
        steps = {name: optimizer.step for name, optimizer in optimizers.items()}
        extend(timings, interleave(steps, settings, advance, clock_of(device)))
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
                "state_bytes_per_parameter": state_bytes(started[name].optimizer) / elements,
            }
            for name, timing in timings.items()
        },
        "not_timed": reasons,
        "low_bit": [name for name in timings if name in OTHERS and OTHERS[name].low_bit],
    }


def state_bytes(optimizer: Any) -> int:
    """Bytes of all tensors in an optimizer's state; 0 for what has none.

    A tensor subclass, such as a quantized one, is the tensors that it is made of.
    """
    states = getattr(optimizer, "state", {}).values()
    tensors = (value for state in states for value in state.values())
    return sum(_bytes(value) for value in tensors if isinstance(value, torch.Tensor))


def _bytes(tensor: torch.Tensor) -> int:
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def describe_timing(timing: Timing) -> dict[str, Any]:
    """Seconds a step: median, quartiles and every round; on a GPU also the stream's median.

    The rounds have five digits, more than clocks and machines can repeat.
    """
    described = {**asdict(summarize(timing.seconds)), "steps": timing.steps}
    described["seconds"] = [float(f"{seconds:.5g}") for seconds in timing.seconds]
    described["stream_seconds"] = [float(f"{seconds:.5g}") for seconds in timing.stream_seconds]
    if timing.stream_seconds:
        described["stream_median"] = summarize(timing.stream_seconds).median
    return described


def derive(timings: dict[str, Timing], ideal_bytes: int) -> dict[str, Any]:
    """What a row says about its timings."""
    ours = timings[OURS]
    ratios = {
        name: ratio(timing, ours)
        for name, timing in timings.items()
        if name not in (OURS, TOUCH, COPY)
    }
    theirs = {name: timings[name] for name in TORCH if name in timings}
    fastest = min(theirs, key=lambda name: summarize(theirs[name].seconds).median, default=None)
    speedup = ratios[fastest] if fastest else None
    return {
        **(derive_copy(timings[COPY], ours, ideal_bytes) if COPY in timings else {}),
        "ideal_bytes": ideal_bytes,
        "bytes_per_second": ideal_bytes / summarize(ours.seconds).median,
        "share_of_touch": asdict(ratio(timings[TOUCH], ours)),
        "fastest_torch": fastest,
        "speedup": asdict(speedup) if speedup else None,
        "tie": speedup is not None and is_tie(speedup),
        "ratios": {name: asdict(summary) for name, summary in ratios.items()},
    }


def derive_copy(copy: Timing, ours: Timing, ideal_bytes: int) -> dict[str, Any]:
    """How a step compares with a copy that moves as many bytes."""
    return {
        "copy_bytes_per_second": ideal_bytes / summarize(copy.seconds).median,
        "share_of_copy": asdict(ratio(copy, ours)),
    }


def is_tie(speedup: Summary) -> bool:
    """Whether 1 is within the margin of the median, or between the quartiles."""
    between = speedup.lower_quartile <= 1 <= speedup.upper_quartile
    return between or abs(speedup.median - 1) <= _TIE
