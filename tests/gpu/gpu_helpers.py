"""Helpers of the checks that need a GPU."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import defaultdict

import numpy as np
import torch

from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.verify import count_mismatches, gradients, to_array

GPU = torch.device("cuda")

# One case of every rule, with as many states as the rule can have.
LARGEST_CASES = [
    max(
        (case for case in CASES if case.row.name == name),
        key=lambda case: (
            bool(case.options.get("amsgrad")),
            bool(case.options.get("momentum")),
            bool(case.options.get("centered")),
            len(case.options),
        ),
    )
    for name in dict.fromkeys(case.row.name for case in CASES)
]


def mismatches(actual: torch.Tensor, expected: torch.Tensor) -> int:
    """Elements that differ in any bit, where two NaN are equal; on any devices."""
    return count_mismatches(to_array(actual.cpu()), to_array(expected.cpu()))


def mixed_tensors(sizes=(1, 7, 100, 4099)):
    """Random tensors of every size in every dtype."""
    torch.manual_seed(0)
    return [torch.randn(size).to(dtype) for size in sizes for dtype in DTYPES]


def optimizer_on(device, case, tensors, **more):
    """The optimizer of a case on copies of the tensors, whose gradients are there to be fed."""
    params = [torch.nn.Parameter(tensor.detach().to(device, copy=True)) for tensor in tensors]
    for param in params:
        param.grad = torch.zeros_like(param)
    return case.row.optimizer(params, **{**case.options, **more})


def twins(case, tensors, **more):
    """The same on the GPU, with more options, and on the CPU."""
    return optimizer_on(GPU, case, tensors, **more), optimizer_on("cpu", case, tensors)


def params_of(optimizer):
    """All parameters of all groups."""
    return [param for group in optimizer.param_groups for param in group["params"]]


def gradient_steps(tensors, steps, seed=0):
    """Gradients of every kind, for so many steps."""
    generator = np.random.default_rng(seed)
    return [
        [gradients(t.numel(), t.dtype, generator).view(t.shape) for t in tensors]
        for _ in range(steps)
    ]


def feed(grads, *optimizers):
    """Writes these values into the gradients that the parameters have."""
    for optimizer in optimizers:
        for param, grad in zip(params_of(optimizer), grads, strict=True):
            param.grad.copy_(grad)


def step_all(grads, *optimizers):
    """One step of each with these gradients."""
    feed(grads, *optimizers)
    for optimizer in optimizers:
        optimizer.step()


def assert_same(actual, expected, where=""):
    """Parameters, states and step counts of two optimizers are equal in every bit."""
    pairs = list(_pairs(actual, expected))
    batches = defaultdict(list)
    for _, mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        assert mine.shape == theirs.shape
        batches[mine.device, theirs.device, mine.dtype].append((mine, theirs))
    joint = [
        [torch.cat([both[side].detach().reshape(-1) for both in batch]) for side in (0, 1)]
        for batch in batches.values()
    ]
    if any(mismatches(*both) for both in joint):
        wrong = [(name, n) for name, mine, theirs in pairs if (n := mismatches(mine, theirs))]
        raise AssertionError(f"{where}: elements that differ: {wrong[:10]}")


def _pairs(actual, expected):
    both = zip(params_of(actual), params_of(expected), strict=True)
    for index, (mine, theirs) in enumerate(both):
        yield f"parameter {index} of {mine.numel()} {mine.dtype}", mine, theirs
        states = actual.state.get(mine, {}), expected.state.get(theirs, {})
        assert set(states[0]) == set(states[1]), index
        for name in states[0]:
            label = f"{name} {index} of {mine.numel()} {mine.dtype}"
            yield label, states[0][name], states[1][name]


class Flat:
    """Tensors in one piece of memory, with guard values around and between.

    Args:
        sizes: their numbers of elements.
        shifts: how many elements each begins after a multiple of 16 elements.
    """

    GUARD = 123.0

    def __init__(self, sizes, shifts, dtype, device):
        starts, end = [], 0
        for size, shift in zip(sizes, shifts, strict=True):
            starts.append(16 * (end // 16 + 2) + shift)
            end = starts[-1] + size
        self.memory = torch.full((end + 64,), self.GUARD, dtype=dtype, device=device)
        self.views = [
            self.memory[start : start + size] for start, size in zip(starts, sizes, strict=True)
        ]


def capture(optimizer):
    """A CUDA graph of one step."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph


def gpu_activity(function, folder):
    """Names of what ran on the GPU during a call, by kind: kernel, gpu_memcpy, gpu_memset."""
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=activities) as profile:
            function()
            torch.cuda.synchronize()
        path = folder / "trace.json"
        profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    by_kind = itertools.groupby(
        sorted((event["cat"], event["name"]) for event in events if "cat" in event),
        key=lambda event: event[0],
    )
    names = {kind: [name for _, name in group] for kind, group in by_kind}
    return {kind: names.get(kind, []) for kind in ("kernel", "gpu_memcpy", "gpu_memset")}
