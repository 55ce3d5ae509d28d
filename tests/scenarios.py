"""Optimizer runs that hypothesis draws: what is stepped, where it lies, and by which engine.

Everything is plain data, so that a failing run prints as Python that ``@example`` takes.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from hypothesis import strategies as st

from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import ROWS
from helpers import ISAS

CHUNK_BYTES = 16384  # of an operand, that a block of the CUDA kernels updates
ELEMENTS_PER_THREAD = 32768


class Record:
    """Shows what differs from the defaults."""

    def __repr__(self) -> str:
        shown = [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if f.default_factory is not MISSING or getattr(self, f.name) != f.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Layout(Record):
    """Where the elements of a view lie.

    ``rotation`` turns the order of the dimensions, ``step`` is the innermost stride, ``gap`` is
    left after every row, and bits of ``expanded`` name dimensions of stride 0.
    """

    rotation: int = 0
    step: int = 1
    gap: int = 0
    offset: int = 0
    expanded: int = 0

    def strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The strides of a view of this shape."""
        strides = [0] * len(shape)
        following = self.step
        for position in reversed(range(len(shape))):
            dim = (position + self.rotation) % len(shape)
            if not self.expanded >> dim & 1:
                strides[dim] = following
                following = following * max(shape[dim], 1) + self.gap
        return tuple(strides)


@dataclass(frozen=True, repr=False)
class Tensor(Record):
    """A parameter, and how it, its gradient and its states lie in memory.

    Gradient and states have its dtype, or their own; states, once there are any.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    param: Layout = Layout()
    grad: Layout = Layout()
    states: tuple[Layout, ...] = (Layout(),)
    is_extreme: bool = False  # its first values are those of a gradient of every kind
    grad_dtype: torch.dtype | None = None
    state_dtype: torch.dtype | None = None


@dataclass(frozen=True, repr=False)
class Group(Record):
    """A parameter group. Rates are tensors of ``rates_as``, or numbers."""

    tensors: tuple[Tensor, ...]
    options: dict[str, Any] = field(default_factory=dict)
    rates_as: torch.dtype | None = None


@dataclass(frozen=True, repr=False)
class Step(Record):
    """One call of ``step``. ``scaler`` is the scale and ``found_inf`` of a gradient scaler."""

    seed: int = 0
    scaler: tuple[float | None, float] | None = None
    without_grad: tuple[int, ...] = ()  # positions in the list of all parameters
    lr: float | None = None


@dataclass(frozen=True, repr=False)
class Cpu(Record):
    """The CPU's kernels."""

    isa: str = ISAS[0]
    threads: int = 1


@dataclass(frozen=True, repr=False)
class EmulatedCuda(Record):
    """The CUDA kernels' body; ``seed`` shuffles its blocks."""

    capturable: bool = False
    overflows: bool = False
    seed: int = 0


@dataclass(frozen=True, repr=False)
class CompiledCuda(Record):
    """The CUDA engine with the kernels as compiled; ``seed`` shuffles their blocks.

    If the device derives the scalars (``capturable``): in which dtype it counts the steps, and as
    which numbers it holds all options.
    """

    capturable: bool = False
    counts_as: torch.dtype = torch.float32
    options_as: torch.dtype | None = None
    architecture: str = "sm_80"
    seed: int = 0


@dataclass(frozen=True, repr=False)
class Scenario(Record):
    """A whole run."""

    rule: str
    groups: tuple[Group, ...]
    steps: tuple[Step, ...] = (Step(),)
    engine: Cpu | EmulatedCuda | CompiledCuda = Cpu()
    starts: dict[str, float] = field(default_factory=dict)  # what states begin with


def around(*centres: int) -> list[int]:
    """Each number, and those beside it."""
    return sorted({max(n + d, 0) for n in centres for d in (-1, 0, 1)})


# Packs, vectors, cuts and blocks; then chunks of every dtype and what one more thread takes.
SMALL = around(0, 2, 4, 8, 16, 32, 64, 128, 512, 1024)
LARGE = around(
    *(CHUNK_BYTES * n // dtype.itemsize for dtype in DTYPES for n in (1, 2)),
    *(ELEMENTS_PER_THREAD * n for n in (2, 3)),
)

non_negative = st.one_of(st.sampled_from([0.0, 1e-8, 0.5, 1.0]), st.floats(0, 2))
factors = st.one_of(st.sampled_from([0.0, 0.5, 0.9]), st.floats(0, 1, exclude_max=True))
# The least is what a scheduler's rounding may leave of zero.
rates = st.one_of(
    st.sampled_from([1e-3, 0.1, 0.0, -1e-13, 1e30]), st.floats(0, 1), st.floats(0, 1e3)
)
decays = st.one_of(st.just(0.0), st.sampled_from([0.1, 1e-300]), st.floats(0, 1))
flags = st.booleans()

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "lr": rates,
    "weight_decay": decays,
    "maximize": flags,
    "momentum": non_negative,
    "dampening": st.one_of(st.just(0.0), st.floats(-1, 2)),
    "nesterov": flags,
    "lr_decay": non_negative,
    "eps": non_negative,
    "alpha": non_negative,
    "centered": flags,
    "rho": st.floats(0, 1),
    "betas": st.tuples(factors, factors),
    "amsgrad": flags,
    "decoupled_weight_decay": flags,
}
# Of the constructor, since it is what a state begins with.
STARTS = {"initial_accumulator_value": non_negative}


def options_of(rule: str, table: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """What of a table the reference of a rule and its class take."""
    (row,) = (row for row in ROWS if row.name == rule)
    ours = inspect.signature(row.optimizer).parameters
    known = [name for name in inspect.signature(row.reference).parameters if name in ours]
    assert {*known} <= {*OPTIONS, *STARTS}, f"{rule} has an option without values to draw"
    return {name: table[name] for name in known if name in table}


offsets = st.integers(0, 16)
dense = st.builds(Layout, offset=offsets)
layouts = st.builds(Layout, st.integers(0, 2), st.integers(1, 3), st.integers(0, 5), offset=offsets)
grad_layouts = st.builds(
    Layout, st.integers(0, 2), st.integers(1, 3), st.integers(0, 5), offsets, st.integers(0, 7)
)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    """Up to three dimensions with about as many elements as a boundary."""
    size = draw(st.one_of(st.sampled_from(SMALL), st.sampled_from(SMALL + LARGE)))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    return draw(
        st.sampled_from(
            [(size,), (rows, size // rows), (rows, columns, size // rows // columns), ()]
        )
    )


other_dtypes = st.sampled_from([None, None, *DTYPES])


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """A tensor whose operands all lie alike, or each in its own way."""
    shape, dtype = draw(shapes()), draw(st.sampled_from(DTYPES))
    others = (draw(other_dtypes), draw(other_dtypes))
    is_extreme = draw(flags)
    kind = draw(st.sampled_from(["alike", "dense", "any"]))
    if kind == "alike":
        layout = draw(layouts)
        return Tensor(shape, dtype, layout, layout, (layout,), is_extreme, *others)
    of_operand = dense if kind == "dense" else layouts
    of_grad = dense if kind == "dense" else grad_layouts
    of_states = st.lists(of_operand, min_size=1, max_size=3).map(tuple)
    lie = draw(of_operand), draw(of_grad), draw(of_states)
    return Tensor(shape, dtype, *lie, is_extreme, *others)


def groups_of(rule: str) -> st.SearchStrategy[Group]:
    """Parameter groups of a rule; an option that is left out has its default."""
    return st.builds(
        Group,
        st.lists(tensors(), min_size=1, max_size=4).map(tuple),
        st.fixed_dictionaries({}, optional=options_of(rule, OPTIONS)),
        st.sampled_from([None, None, torch.float32, torch.float64]),
    )


scalers = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.sampled_from([None, 65536.0, 1000.0, 3.0, 2.0**-20]),
        st.sampled_from([0.0, 0.0, -0.0, 1.0, float("nan")]),
    ),
)
steps = st.builds(
    Step,
    st.integers(0, 1000),
    scalers,
    st.lists(st.integers(0, 7), max_size=2).map(tuple),
    st.one_of(st.none(), rates),
)


@st.composite
def scenarios(
    draw: st.DrawFn, engine: st.SearchStrategy[Cpu] | st.SearchStrategy[EmulatedCuda]
) -> Scenario:
    """A run of any rule on an engine."""
    rule = draw(st.sampled_from([row.name for row in ROWS]))
    return Scenario(
        rule,
        draw(st.lists(groups_of(rule), min_size=1, max_size=3).map(tuple)),
        draw(st.lists(steps, min_size=1, max_size=4).map(tuple)),
        draw(engine),
        draw(st.fixed_dictionaries(options_of(rule, STARTS))),
    )


cpu_engines = st.builds(Cpu, st.sampled_from(ISAS), st.integers(1, 3))
emulated_cuda_engines = st.builds(EmulatedCuda, flags, flags, st.integers(0, 9))
