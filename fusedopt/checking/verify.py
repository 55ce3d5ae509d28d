"""Compares the native kernels with the NumPy reference, as integers.

Gradients span 1e-20 to 1e+20 (as far as the dtype reaches) and include zeros of both signs,
subnormals, infinities and NaN. Two NaN are equal whatever their payload, which IEEE 754 leaves to
the processor; everything else must be equal in every bit.

The second measure is accuracy: one step from the same parameters and state is repeated by the
reference in a wider type, and the distance of the new parameter is counted in units in the last
place (ULP) of the sum of the magnitudes of its terms, so that cancellation, which no arithmetic
avoids, does not count as an error. It is taken on the elements whose gradients are of ordinary
size: where the wider type keeps what overflows in the narrower, a distance means nothing.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fusedopt import _native, reference
from fusedopt.checking.cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fusedopt.reference import Array, Rule, State

# Around vector widths, blocks and cuts; large enough together to occupy three threads.
SIZES = (0, 1, 2, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1025, 4099, 50021)
STEPS = 50

# What is stored of an array of numbers, by the dtype that it is stored in.
ROUNDINGS: dict[torch.dtype, Callable[[Array], Array]] = {
    torch.float32: reference.round_float32,
    torch.float64: lambda x: x,
    torch.bfloat16: reference.round_bfloat16,
    torch.float16: reference.round_float16,
}


CUDA = "cuda"


def targets() -> list[str]:
    """What kernels can run on here: the CPU's instruction sets and, if there is a GPU, CUDA."""
    return [*_native.available_isas(), *([CUDA] if torch.cuda.is_available() else [])]


@contextmanager
def isa(name: str) -> Iterator[None]:
    """Runs native kernels with the instruction set ``name`` inside the context."""
    before = _native.selected_isa()
    _native.select_isa(name)
    try:
        yield
    finally:
        _native.select_isa(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets torch's number of threads inside the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def reference_rule(case: Case, dtype: torch.dtype) -> Rule:
    """The reference function of a case, rounding as parameters of ``dtype`` are stored."""
    rule = case.row.reference
    return reference.in_formats(rule, ROUNDINGS[dtype], ROUNDINGS[dtype])


def to_array(tensor: torch.Tensor) -> Array:
    """A tensor as an array of the type that its arithmetic is done in."""
    wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    return tensor.detach().to("cpu", wide).numpy().copy()


def count_mismatches(actual: Array, expected: Array) -> int:
    """Elements that differ in any bit, where two NaN are equal."""
    integer = np.int64 if expected.dtype == np.float64 else np.int32
    equal_bits = actual.view(integer) == expected.view(integer)
    return int(np.sum(~(equal_bits | (np.isnan(actual) & np.isnan(expected)))))


def gradients(size: int, dtype: torch.dtype, generator: np.random.Generator) -> torch.Tensor:
    """Gradients of every kind; every fifth element is extreme, the next of any magnitude."""
    info = torch.finfo(dtype)
    lowest = max(-20.0, float(np.log10(info.smallest_normal)) - 1)
    highest = min(20.0, float(np.log10(info.max)))
    tiny = info.smallest_normal
    special = np.array(
        [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, tiny, -tiny / 2, tiny * info.eps]
    )
    grad = generator.standard_normal(size)
    signs = generator.choice([-1.0, 1.0], size)
    any_magnitude = signs * 10.0 ** generator.uniform(lowest, highest, size)
    # Mostly ordinary, so that an element lives for a while before it becomes NaN for good.
    extreme = np.where(generator.random(size) < 0.1, generator.choice(special, size), grad)
    kind = np.arange(size) % 5
    grad = np.where(kind == 0, extreme, np.where(kind == 1, any_magnitude, grad))
    return torch.from_numpy(grad).to(dtype)


def is_ordinary(size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which elements of :func:`gradients` have gradients of ordinary size."""
    return np.arange(size) % 5 >= 2


@functools.cache
def _gradient_steps(
    sizes: tuple[int, ...], dtype: torch.dtype, steps: int
) -> list[list[torch.Tensor]]:
    generator = np.random.default_rng(0)
    return [[gradients(n, dtype, generator) for n in sizes] for _ in range(steps)]


class Oracle:
    """One step of a case in a wider type, on the elements with gradients of ordinary size."""

    def __init__(
        self,
        case: Case,
        dtype: torch.dtype,
        options: dict[str, Any],
        before: tuple[Array, State],
        grad: Array,
    ) -> None:
        self._wider: Any = np.longdouble if dtype == torch.float64 else np.float64
        self._ordinary = is_ordinary(grad.size)
        info = torch.finfo(dtype)
        self._param, _ = case.row.reference(*self._widened(before, grad, np.positive), **options)
        # With all signs made equal, and the update added, every sum is one of magnitudes.
        as_sum = {**options, "lr": -options["lr"], "maximize": False}
        magnitude, _ = case.row.reference(*self._widened(before, grad, np.abs), **as_sum)
        with np.errstate(all="ignore"):
            exponent = np.floor(np.log2(np.maximum(magnitude, info.smallest_normal)))
            self._ulp = np.exp2(exponent) * info.eps

    def _widened(
        self, before: tuple[Array, State], grad: Array, function: Callable[[Array], Array]
    ) -> tuple[Array, Array, State]:
        def widen(array: Array) -> Array:
            return function(array[self._ordinary].astype(self._wider))

        state = {
            name: widen(value) if isinstance(value, np.ndarray) else value
            for name, value in before[1].items()
        }
        return widen(before[0]), widen(grad), state

    def distance(self, after: Array) -> float:
        """Largest distance of a step's parameters from it, in ULP."""
        with np.errstate(all="ignore"):
            apart = np.abs(after[self._ordinary].astype(self._wider) - self._param) / self._ulp
        return float(np.max(apart[np.isfinite(apart)], initial=0.0))


@dataclass
class Result:
    """One row of the table: a rule in one dtype on one target."""

    rule: str
    dtype: str
    target: str
    elements: int = 0
    mismatches: int = 0
    ulp: float = 0.0
    first_mismatch: str = ""

    def add(self, elements: int, mismatches: int, where: str) -> None:
        """Counts compared elements and those of them that differ."""
        self.elements += elements
        self.mismatches += mismatches
        if mismatches and not self.first_mismatch:
            self.first_mismatch = where

    def merge(self, other: Result) -> None:
        """Adds another result of the same rule, dtype and target."""
        self.add(other.elements, other.mismatches, other.first_mismatch)
        self.ulp = max(self.ulp, other.ulp)


def take_any_gradient(param: torch.Tensor) -> None:
    """Has a parameter take gradients of any dtype."""
    if hasattr(param, "grad_dtype"):  # torch 2.9 and later ask first
        param.grad_dtype = None


def parameter(values: torch.Tensor) -> torch.nn.Parameter:
    """A parameter that takes gradients of any dtype."""
    param = torch.nn.Parameter(values)
    take_any_gradient(param)
    return param


class Trajectory:
    """One optimizer's parameters as they go through the steps of a case."""

    def __init__(
        self,
        case: Case,
        initial: Sequence[torch.Tensor],
        target: str,
        count: int,
        **options: Any,
    ) -> None:
        self.isa = None if target == CUDA else target
        self.thread_count = count
        device = torch.device(CUDA if target == CUDA else "cpu")
        self.params = [parameter(t.to(device, copy=True)) for t in initial]
        self.optimizer = case.row.optimizer(self.params, **case.options, **options)

    def step(self, grads: Sequence[torch.Tensor]) -> None:
        """Takes a step on the trajectory's target, with copies of the gradients on a GPU."""
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad.to(param.device)
        with isa(self.isa or _native.selected_isa()), threads(self.thread_count):
            self.optimizer.step()

    def mismatches(self, expected: Sequence[tuple[Array, State]]) -> int:
        """Elements of parameters and states that differ from the reference's in any bit."""
        total = 0
        for param, (value, state) in zip(self.params, expected, strict=True):
            total += count_mismatches(to_array(param), value)
            for name, array in state.items():
                native = self.optimizer.state[param][name]
                if name == "step":
                    total += int(native.item() != array)
                else:
                    total += count_mismatches(to_array(native), array)
        return total


def verify_case(
    case: Case,
    dtype: torch.dtype,
    targets: Sequence[str],
    thread_counts: Sequence[int],
    steps: int = STEPS,
    sizes: tuple[int, ...] = SIZES,
) -> list[Result]:
    """Steps one case on every target and thread count, beside the reference.

    Targets are instruction sets of the CPU and ``cuda``, which has no thread count.

    Parameters, states and step counts are compared after the first three steps, every tenth and
    the last; what differs in between stays different.

    Returns:
        One result a target.
    """
    generator = np.random.default_rng(1)
    initial = [torch.from_numpy(generator.standard_normal(n)).to(dtype) for n in sizes]
    runs = {
        (name, count): Trajectory(case, initial, name, count)
        for name in targets
        for count in (thread_counts[:1] if name == CUDA else thread_counts)
    }
    group = next(iter(runs.values())).optimizer.param_groups[0]
    options = case.row.reference_options(group)
    rule = reference_rule(case, dtype)
    results = {
        name: Result(case.row.name, str(dtype).removeprefix("torch."), name) for name in targets
    }

    expected: list[tuple[Array, State]] = [(to_array(tensor), {}) for tensor in initial]
    for step, grads in enumerate(_gradient_steps(sizes, dtype, steps), start=1):
        before, grad_arrays = expected, [to_array(grad) for grad in grads]
        expected = [
            rule(param, grad, state, **options)
            for (param, state), grad in zip(before, grad_arrays, strict=True)
        ]
        compare = step <= 3 or step % 10 == 0 or step == steps
        if compare:
            oracle = Oracle(case, dtype, options, before[-1], grad_arrays[-1])
        for (name, count), run in runs.items():
            run.step(grads)
            if not compare:
                continue
            where = f"{case}, {count} threads, step {step}"
            results[name].add(sum(sizes), run.mismatches(expected), where)
            if count == thread_counts[0]:
                ulp = oracle.distance(to_array(run.params[-1]))
                results[name].ulp = max(results[name].ulp, ulp)
    return list(results.values())


def default_thread_counts() -> list[int]:
    """1, 2 and all."""
    return sorted({1, 2, torch.get_num_threads()})
