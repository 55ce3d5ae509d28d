"""What a row of a result says about the times that were measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from ..contestants.contests import COPY, OURS, TORCH, TOUCH
from .timing import Summary, Timing, ratio, summarize

# Two times within this fraction of each other are a tie.
_TIE = 0.03


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


def stored_bytes(optimizer: Any) -> int:
    """Bytes of an optimizer's parameters and of their states, without the step counts."""
    return sum(
        param.nbytes + sum(_bytes(state) for state in _states(optimizer, param))
        for param in _params(optimizer)
    )


def moved_bytes(optimizer: Any) -> int:
    """Bytes that a step has to move: gradients are read, the rest is read and written."""
    gradients = sum(param.grad.nbytes for param in _params(optimizer) if param.grad is not None)
    return gradients + 2 * stored_bytes(optimizer)


def _params(optimizer: Any) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _states(optimizer: Any, param: torch.Tensor) -> list[torch.Tensor]:
    values = optimizer.state[param].values()
    return [value for value in values if isinstance(value, torch.Tensor) and value.dim() > 0]


def describe_timing(timing: Timing) -> dict[str, Any]:
    """Seconds per step: median, quartiles and every round; on a GPU also the stream's median.

    The rounds have five digits, more than clocks and machines can repeat.
    """
    described = {**asdict(summarize(timing.seconds)), "steps": timing.steps}
    described["seconds"] = [float(f"{seconds:.5g}") for seconds in timing.seconds]
    described["stream_seconds"] = [float(f"{seconds:.5g}") for seconds in timing.stream_seconds]
    described["left_out"] = [float(f"{seconds:.5g}") for seconds in timing.left_out]
    if timing.stream_seconds:
        described["stream_median"] = summarize(timing.stream_seconds).median
    return described


def derive(timings: dict[str, Timing], ideal_bytes: int) -> dict[str, Any]:
    """What a row says about its timings."""
    ours = timings[OURS]
    return {
        **(derive_copy(timings[COPY], ours, ideal_bytes) if COPY in timings else {}),
        "ideal_bytes": ideal_bytes,
        "bytes_per_second": ideal_bytes / summarize(ours.seconds).median,
        **derive_ratios(timings),
    }


def derive_ratios(timings: dict[str, Timing]) -> dict[str, Any]:
    """How everybody's time compares with this package's, round by round."""
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
        "share_of_touch": asdict(ratio(timings[TOUCH], ours)) if TOUCH in timings else None,
        "fastest_torch": fastest,
        "speedup": asdict(speedup) if speedup else None,
        "tie": speedup is not None and is_tie(speedup),
        "ratios": {name: asdict(summary) for name, summary in ratios.items()},
    }


def ratio_row(theirs: Timing, ours: Timing) -> dict[str, float]:
    """Their time over this package's, round by round."""
    return asdict(ratio(theirs, ours))


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
