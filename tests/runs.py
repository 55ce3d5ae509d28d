"""Runs a scenario beside the reference, and compares after every step."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch

from emulation import emulation
from fusedopt import reference
from fusedopt.checking.cases import Case
from fusedopt.checking.rows import ROWS, Row
from fusedopt.checking.stored import Expected, Storage
from fusedopt.checking.verify import (
    ROUNDINGS,
    count_mismatches,
    gradients,
    isa,
    take_any_gradient,
    threads,
)
from fusedopt.optimizers import epilogue, storage
from helpers import Guarded, scaled_step
from scenarios import CompiledCuda, Cpu, Group, Layout, Scenario, Step, Tensor
from touch import TOUCH

ROW = {row.name: row for row in (*ROWS, TOUCH)}
RATES = ("lr", "weight_decay", "betas")
STORED = {**storage.DEFAULTS, **epilogue.DEFAULTS}  # options of more than the rule
MARGIN = 64  # elements: a layout's offset alone says how memory is aligned


def place(values: torch.Tensor, layout: Layout, guards: list[Guarded]) -> torch.Tensor:
    """A copy of a tensor that lies as a layout says, with guards around and between."""
    strides = layout.strides(tuple(values.shape))
    extent = sum(max(n - 1, 0) * s for n, s in zip(values.shape, strides, strict=True)) + 1
    guarded = Guarded(extent + layout.offset, values.dtype, margin=MARGIN)
    guards.append(guarded)
    view = guarded.view(values.shape, strides, layout.offset)
    if 0 not in strides:
        return view.copy_(values)
    # Elements that share memory get one value.
    for dim, stride in enumerate(strides):
        if stride == 0:
            values = values.narrow(dim, 0, min(values.shape[dim], 1))
    view.as_strided(values.shape, strides, view.storage_offset()).copy_(values)
    return view


def to_doubles(tensor: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor, which a double holds whatever its dtype is."""
    return tensor.detach().double().numpy().copy()


def as_numbers(states: dict, number: type) -> dict:
    """A state's arrays in another type."""
    return {name: v if name == "step" else v.astype(number) for name, v in states.items()}


class TrackedParameter:
    """A parameter, what it should be, and the guards around all that belongs to it."""

    def __init__(self, tensor: Tensor, generator: np.random.Generator, row: Row):
        self.tensor = tensor
        self.grad_dtype = tensor.grad_dtype or tensor.dtype
        self.state_dtype = tensor.dtype  # of those that there are
        self.generator = generator
        self.reference = row.reference
        self.guards: list[Guarded] = []
        values = torch.from_numpy(generator.standard_normal(tensor.shape)).to(tensor.dtype)
        if tensor.is_extreme:
            values = gradients(values.numel(), tensor.dtype, generator).view(tensor.shape)
        self.param = torch.nn.Parameter(place(values, tensor.param, self.guards))
        take_any_gradient(self.param)
        self.expected = (to_doubles(self.param), {})
        self.grad_guard: Guarded | None = None
        self.has_placed_states = False

    def draw_gradient(self, is_scaled: bool) -> None:
        """Scaled gradients are divided where they lie, so none of their elements share memory."""
        layout = self.tensor.grad
        if is_scaled:
            layout = Layout(layout.rotation, layout.step, layout.gap, layout.offset)
        values = gradients(self.param.numel(), self.grad_dtype, self.generator)
        grad_guards: list[Guarded] = []
        self.param.grad = place(values.view(self.tensor.shape), layout, grad_guards)
        (self.grad_guard,) = grad_guards
        self.expected_grad = to_doubles(self.param.grad)

    def advance(self, step: Step, options: dict) -> None:
        """Does with the reference what the step is to do."""
        scale, found_inf = step.scaler or (None, 0.0)
        if found_inf != 0:
            return
        value, states = self.expected
        dtypes = [self.tensor.dtype, self.grad_dtype]
        if self.has_placed_states:
            dtypes.append(self.state_dtype)
        number = np.float64 if torch.float64 in dtypes else np.float32
        grad = self.expected_grad.astype(number)
        if scale is not None:
            grad = np.asarray(reference.unscale(grad, scale))
            self.expected_grad = ROUNDINGS[self.grad_dtype](grad).astype(np.float64)
        rule = reference.in_formats(
            self.reference, ROUNDINGS[self.tensor.dtype], ROUNDINGS[self.state_dtype]
        )
        value, states = rule(value.astype(number), grad, as_numbers(states, number), **options)
        self.expected = (value.astype(np.float64), as_numbers(states, np.float64))

    def place_states(self, states: dict[str, torch.Tensor]) -> None:
        """Moves new states to where the run wants them, and stores them as it wants them."""
        names = [name for name in states if name != "step"]
        if self.has_placed_states or not names:
            return
        self.state_dtype = self.tensor.state_dtype or self.state_dtype
        for n, name in enumerate(names):
            layout = self.tensor.states[n % len(self.tensor.states)]
            stored = states[name].to(self.state_dtype)
            states[name] = place(stored, layout, self.guards)
            self.expected[1][name] = to_doubles(stored)
        self.has_placed_states = True

    def assert_as_expected(self, states: dict[str, torch.Tensor]) -> None:
        assert count_mismatches(to_doubles(self.param), self.expected[0]) == 0
        if self.param.grad is not None:
            assert count_mismatches(to_doubles(self.param.grad), self.expected_grad) == 0
        for name, value in self.expected[1].items():
            if name == "step":
                assert states[name].item() == value
            else:
                assert count_mismatches(to_doubles(states[name]), value) == 0, name
        self.assert_guards()

    def assert_guards(self) -> None:
        for guarded in (*self.guards, self.grad_guard):
            if guarded is not None:
                guarded.assert_untouched()


class StoredParameter(TrackedParameter):
    """One whose group asks for more than the rule: beside what the reference stores of it, in
    memory's order.
    """

    def __init__(
        self, tensor: Tensor, generator: np.random.Generator, row: Row, options: dict, number: int
    ):
        super().__init__(tensor, generator, row)
        kept = Storage(tensor.dtype, self.grad_dtype, options)
        self.stored = Expected(Case(row, {}), kept, self.in_order(self.param), number)

    def in_order(self, tensor: torch.Tensor) -> torch.Tensor:
        """The elements as those of the parameter follow each other; of anything else itself."""
        if tensor.shape != self.param.shape:
            return tensor
        dims = sorted(range(tensor.ndim), key=lambda dim: -self.param.stride(dim))
        return tensor.detach().permute(dims).reshape(-1)

    def advance(self, step: Step, options: dict) -> None:
        scale, found_inf = step.scaler or (None, 0.0)
        if found_inf != 0:
            return
        grad = self.stored.step(self.in_order(self.param.grad), options, scale)
        if scale is not None:
            rounded = torch.from_numpy(ROUNDINGS[self.grad_dtype](grad).astype(np.float64))
            like = torch.empty_strided(self.param.shape, self.dense_strides(), dtype=torch.float64)
            self.in_memory(like).copy_(rounded)
            self.expected_grad = like.numpy()

    def dense_strides(self) -> tuple[int, ...]:
        """Of the parameter's elements in the order of its memory, without gaps."""
        return Layout(rotation=self.tensor.param.rotation).strides(tuple(self.param.shape))

    def in_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_strided((tensor.numel(),), (1,))

    def place_states(self, states: dict[str, torch.Tensor]) -> None:
        """Codes have to lie in the order of the parameter, without gaps; all else as it likes."""
        names = [name for name in states if name != "step"]
        if self.has_placed_states or not names:
            return
        for n, name in enumerate(names):
            layout = self.tensor.states[n % len(self.tensor.states)]
            if states[name].dtype == torch.uint8:
                layout = Layout(self.tensor.param.rotation, offset=layout.offset)
            elif states[name].shape != self.param.shape:
                layout = Layout(offset=layout.offset)
            states[name] = place(states[name], layout, self.guards)
        self.has_placed_states = True

    def assert_as_expected(self, states: dict[str, torch.Tensor]) -> None:
        ordered = {name: self.in_order(state) for name, state in states.items()}
        assert self.stored.mismatches(self.in_order(self.param), ordered) == 0
        if self.param.grad is not None:
            assert count_mismatches(to_doubles(self.param.grad), self.expected_grad) == 0
        self.assert_guards()


class Run:
    """An optimizer beside the reference."""

    def __init__(self, scenario: Scenario):
        self.row = ROW[scenario.rule]
        self.scenario = scenario
        generator = np.random.default_rng(len(scenario.groups))
        self.parameters = []
        groups = []
        for group in scenario.groups:
            tracked = []
            for tensor in group.tensors:
                number = len(self.parameters)
                tracked.append(self._tracked(tensor, generator, group.options, number))
                self.parameters.append(tracked[-1])
            groups.append({"params": [t.param for t in tracked], **as_tensors(group)})
        self.optimizer = self.row.optimizer(groups, **self.constructor_options())

    def _tracked(
        self, tensor: Tensor, generator: np.random.Generator, options: dict, number: int
    ) -> TrackedParameter:
        asked = {name: options[name] for name in STORED if name in options}
        if asked:
            return StoredParameter(tensor, generator, self.row, asked, number)
        return TrackedParameter(tensor, generator, self.row)

    def constructor_options(self) -> dict:
        options = dict(self.scenario.starts)
        if getattr(self.scenario.engine, "capturable", False):
            options["capturable"] = True
        return options

    def groups_left(self) -> list[dict]:
        """The parameter groups whose scalars a device derives, with options in its memory."""
        engine = self.scenario.engine
        if not isinstance(engine, CompiledCuda) or not engine.capturable:
            return []
        return [
            {
                name: option if name in STORED else in_memory(option, engine.options_as)
                for name, option in group.items()
            }
            for group in self.optimizer.param_groups
        ]

    def prepare(self, step: Step) -> None:
        """What the user does ahead of a step."""
        if step.lr is not None:
            self.optimizer.param_groups[0]["lr"] = step.lr
        for n, tracked in enumerate(self.parameters):
            if n in step.without_grad:
                tracked.param.grad = None
            else:
                tracked.draw_gradient(is_scaled=step.scaler is not None)

    def advance(self, step: Step) -> None:
        """The step of the reference."""
        parameters = iter(self.parameters)
        for group in self.optimizer.param_groups:
            options = self.row.reference_options(group)
            for tracked in [next(parameters) for _ in group["params"]]:
                if tracked.param.grad is not None:
                    tracked.advance(step, options)

    def step(self, step: Step) -> None:
        """One step of both, and the comparison."""
        self.prepare(step)
        self.advance(step)
        if step.scaler is None:
            self.optimizer.step()
        else:
            scaled_step(self.optimizer, *step.scaler)
        for tracked in self.parameters:
            states = self.optimizer.state.get(tracked.param, {})
            tracked.assert_as_expected(states)
            tracked.place_states(states)
            if "step" in states and isinstance(self.scenario.engine, CompiledCuda):
                states["step"] = states["step"].to(self.scenario.engine.counts_as)


def as_tensors(group: Group) -> dict:
    """A group's options, with tensors for rates if it wants that."""
    if group.rates_as is None:
        return group.options

    def convert(value):
        if isinstance(value, tuple):
            return tuple(convert(item) for item in value)
        tensor = torch.tensor(value, dtype=group.rates_as)
        # Rounding may have left the bounds.
        return tensor if tensor.item() < 1 or value >= 1 else value

    return {
        name: convert(value) if name in RATES else value for name, value in group.options.items()
    }


def in_memory(option: Any, dtype: torch.dtype | None) -> Any:
    """A tensor of a dtype for an option that is such a number."""
    if isinstance(option, tuple):
        return tuple(in_memory(item, dtype) for item in option)
    if dtype is None or not isinstance(option, (int, float)):
        return option
    tensor = torch.tensor(option, dtype=dtype)
    return tensor if tensor.item() == option else option


@contextlib.contextmanager
def engine_of(run: Run):
    engine = run.scenario.engine
    if isinstance(engine, Cpu):
        with isa(engine.isa), threads(engine.threads):
            yield
    elif isinstance(engine, CompiledCuda):
        from compiled_cuda import compiled_cuda  # which needs more than most runs do

        with compiled_cuda(engine.architecture, engine.seed, run.groups_left()):
            yield
    else:
        with emulation(engine.overflows, engine.seed), threads(1):
            yield


def check(scenario: Scenario) -> None:
    """Runs it, and compares after every step."""
    run = Run(scenario)
    with engine_of(run):
        for step in scenario.steps:
            run.step(step)
