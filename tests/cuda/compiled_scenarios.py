"""Runs that take the compiled kernels through all that they can meet.

One launch has tensors of every dtype, of sizes around packs and chunks, and lying in every way.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import torch

from built_code import PTX_OF
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.rows import FIRST_OF_RULE, Row
from fusedopt.checking.stored import STORAGES
from fusedopt.optimizers.storage import FEWEST_CODES
from scenarios import CHUNK_BYTES, CompiledCuda, Group, Layout, Scenario, Step, Tensor
from touch import TOUCH

PACK_BYTES = 16
STORED_CHUNK = 8192  # elements that a block of the kernels for any formats updates
NARROW = tuple(dtype for dtype in DTYPES if dtype != torch.float64)

ALIGNED = Layout()
SHIFTED = Layout(offset=3)
TURNED = Layout(rotation=1)
WITH_GAPS = Layout(gap=5, offset=1)
EVERY_OTHER = Layout(step=2)

# Of the parameter, the gradient and the states, from one run alike in all to a walk.
PLACES = (
    (ALIGNED, ALIGNED, ALIGNED),
    (SHIFTED, SHIFTED, SHIFTED),
    (ALIGNED, SHIFTED, ALIGNED),
    (TURNED, TURNED, TURNED),
    (WITH_GAPS, ALIGNED, ALIGNED),
    (EVERY_OTHER, TURNED, WITH_GAPS),
    (ALIGNED, ALIGNED, SHIFTED),
)

# Whether the device derives the scalars, from step counts and options of which dtypes.
HOWS: tuple[dict, ...] = (
    {},
    {"capturable": True, "counts_as": torch.float32},
    {"capturable": True, "counts_as": torch.float64, "options_as": torch.float64},
    {"capturable": True, "counts_as": torch.int32, "options_as": torch.float32},
    {"capturable": True, "counts_as": torch.int64, "options_as": torch.int32},
    {"capturable": True, "counts_as": torch.float32, "options_as": torch.int64},
)
# Options that are numbers of the dtype, in place of those that are not.
NUMBERS = {
    torch.float32: {"lr": 0.25, "weight_decay": 0.125, "momentum": 0.75, "lr_decay": 0.125,
                    "eps": 2.0**-10, "alpha": 0.75, "rho": 0.75, "betas": (0.5, 0.75)},
    torch.int32: {"lr": 1, "weight_decay": 1, "momentum": 1, "lr_decay": 1, "eps": 1, "alpha": 0,
                  "rho": 0, "betas": (0, 0)},
}  # fmt: skip
NUMBERS[torch.int64] = NUMBERS[torch.int32]

# The second step may be one that is skipped.
SCALERS = (
    (None, None, None),
    ((1024.0, 0.0), (3.0, 0.0), (1024.0, 0.0)),
    ((1024.0, 0.0), (3.0, 1.0), (1024.0, 0.0)),
    ((None, 0.0), (None, float("nan")), (None, 0.0)),
)


def shapes(dtype: torch.dtype, n: int) -> list[tuple[int, ...]]:
    """As many as there are places; `n` varies them."""
    lanes, chunk = PACK_BYTES // dtype.itemsize, CHUNK_BYTES // dtype.itemsize
    return [
        (chunk + (-1, 0, 1, lanes + 3)[n % 4],),
        (2 * chunk + n % lanes,),
        (129 + n,),
        (n % 3 + 3, 5, 7),
        (19, n % 5 + 1),
        (),
        (n % (2 * lanes),),
    ]


def tensors(dtype: torch.dtype, n: int) -> tuple[Tensor, ...]:
    """One of each place."""
    turned = PLACES[n % len(PLACES) :] + PLACES[: n % len(PLACES)]
    return tuple(
        Tensor(shape, dtype, param, grad, (state,), is_extreme=n % 2 == 0)
        for shape, (param, grad, state) in zip(shapes(dtype, n), turned, strict=True)
    )


def options_for(row: Row, options: dict, how: dict) -> dict:
    """Those of a row, as numbers that the device can hold in the way that is asked for."""
    options = {k: v for k, v in options.items() if k != "initial_accumulator_value"}
    numbers = NUMBERS.get(how.get("options_as"), {})
    names = inspect.signature(row.reference).parameters
    for name, number in numbers.items():
        decides_on_states = name == "momentum" and name not in options
        if name in names and not (decides_on_states and row.name in ("SGD", "RMSprop")):
            options[name] = number
    return options


def group(row: Row, options: dict, how: dict, n: int, dtypes=DTYPES) -> Group:
    """Tensors of each dtype under one set of options."""
    return Group(tuple(t for d in dtypes for t in tensors(d, n)), options_for(row, options, how))


def crowd(count: int) -> Group:
    """More tensors than a table holds that is passed by value."""
    return Group(tuple(Tensor((1 + n % 3,), DTYPES[n % len(DTYPES)]) for n in range(count)))


def mixes(row: Row, options: dict, how: dict, n: int, count: int, dtypes) -> Group:
    """Operands of different formats, as many tensors as asked for; `n` varies which."""
    every = list(product(dtypes, (None, *dtypes), (None, *dtypes)))
    chosen = [(n * 7 + k * 13) % len(every) for k in range(count)]
    return Group(
        tuple(
            Tensor((9 + k % 200,), dtype, PLACES[k % 6][0], PLACES[k % 6][1], (ALIGNED,),
                   grad_dtype=of_grad, state_dtype=of_state)
            for k, (dtype, of_grad, of_state) in enumerate(every[c] for c in chosen)
        ),
        options_for(row, options, how),
    )  # fmt: skip


def stored(row: Row, options: dict, how: dict, n: int, dtypes) -> list[Group]:
    """Fewer bytes in two of the ways that there are, and averages; `n` says which."""
    every = [s for s in STORAGES if s.options and {s.param, s.grad} <= {*dtypes}]
    averaged = [s for s in every if "ema_decay" in s.options]
    chosen = (every[n % len(every)], every[(n * 3 + 5) % len(every)], averaged[n % len(averaged)])
    return [
        Group(
            tuple(
                Tensor(shape, s.param, param, grad, (state,), is_extreme=n % 2 == 0,
                       grad_dtype=s.grad)
                for shape, (param, grad, state) in stored_tensors(n + k)
            ),
            {**options_for(row, options, how), **s.options},
        )
        for k, s in enumerate(chosen)
    ]  # fmt: skip


def stored_tensors(n: int) -> list[tuple[tuple[int, ...], tuple[Layout, Layout, Layout]]]:
    """Of groups in packs and beside them, of more than one block, in a walk, of few elements."""
    walk = (WITH_GAPS, EVERY_OTHER, TURNED)[n % 3]
    at_once = (STORED_CHUNK if n % 4 == 0 else FEWEST_CODES) + 256 + n % 3
    beside = (PLACES[n % 3][0], PLACES[n // 2 % 3][1], PLACES[n // 3 % 3 * 3][2])
    return [
        ((at_once,), (ALIGNED, ALIGNED, ALIGNED) if n % 2 else beside),
        ((n % 8, 5), (SHIFTED, ALIGNED, WITH_GAPS)) if n % 2 else ((8, 16, 33), (walk, walk, walk)),
    ]


def steps(n: int) -> tuple[Step, ...]:
    """Three, under one of the scalers."""
    return tuple(Step(n + k, each) for k, each in enumerate(SCALERS[n // 2 % len(SCALERS)]))


def starts(row: Row) -> dict[str, float]:
    has_start = any("initial_accumulator_value" in options for options in row.options)
    return {"initial_accumulator_value": 0.5} if has_start else {}


def scenario(architecture: str, row: Row, groups, how: dict, n: int) -> Scenario:
    engine = CompiledCuda(**how, architecture=architecture, seed=n)
    return Scenario(row.name, tuple(groups), steps(n), engine, starts(row))


def pairs(row: Row) -> Iterator[tuple[int, dict, dict]]:
    """Each set of options in each way to hand it over, and a number that varies the rest."""
    every = product(enumerate(row.options), enumerate(HOWS))
    for (o, options), (h, how) in every:
        yield o + 2 * h, options, how


def in_small_tables(architecture: str, row: Row) -> Iterator[Scenario]:
    """One set of options for all tensors."""
    for n, options, how in pairs(row):
        yield scenario(architecture, row, [group(row, options, how, n)], how, n)


def in_large_tables(architecture: str, row: Row) -> Iterator[Scenario]:
    """The same, and more tensors."""
    for n, options, how in pairs(row):
        groups = [group(row, options, how, n + 1), crowd(40)]
        yield scenario(architecture, row, groups, how, n + 2)


def in_memory(architecture: str, row: Row) -> Iterator[Scenario]:
    """Tables that no launch can take by value."""
    for n, how in enumerate(HOWS[1:3]):
        groups = [group(row, row.options[-1], how, n), crowd(480)]
        yield scenario(architecture, row, groups, how, n)


def of_any_formats(
    architecture: str, row: Row, dtypes=NARROW, turn: int = 0, turns: int = 3
) -> Iterator[Scenario]:
    """In a kernel for them, with tables by value and in memory.

    Every set of options in two of the ways to hand it over: that these are independent, the
    kernels for usual formats show.
    """
    for n, options, how in pairs(row):
        if (row.options.index(options) + HOWS.index(how)) % turns != turn:
            continue
        usual = group(row, options, how, n, dtypes=[dtypes[n % len(dtypes)]])
        mixed = mixes(row, options, how, n, (4, 40)[n % 8 == 1], dtypes)
        groups = [mixed, usual, *stored(row, options, how, n, dtypes)]
        whole = scenario(architecture, row, groups, how, n + 1)
        # The third tells something where the second is skipped.
        is_skipped = any(s.scaler is not None and s.scaler[1] != 0 for s in whole.steps)
        yield whole if is_skipped else replace(whole, steps=whole.steps[:2])


def of_any_formats_in_double(architecture: str, row: Row) -> Iterator[Scenario]:
    """In the kernel for them, which computes in float as well: every set of options once."""
    return of_any_formats(architecture, row, DTYPES, 1, len(HOWS))


KINDS = {
    "small": in_small_tables,
    "large": in_large_tables,
    "memory": in_memory,
    "any": of_any_formats,
    "double": of_any_formats_in_double,
}


ARCHITECTURES = sorted(set(PTX_OF.values()))
ROW_OF_RULE = {**FIRST_OF_RULE, TOUCH.rule: TOUCH}


def scenarios_of(architecture: str, row: Row, kind: str) -> list[Scenario]:
    """All of a rule and a kind of launch."""
    return list(KINDS[kind](architecture, row))


def share_of(architecture: str, row: Row, kind: str) -> list[Scenario]:
    """All whose scalars the host derives; of the others a part, with all options and all ways."""
    every = enumerate(scenarios_of(architecture, row, kind))
    turn = ARCHITECTURES.index(architecture)
    return [
        s
        for n, s in every
        if not s.engine.capturable or (n + n // len(HOWS)) % len(ARCHITECTURES) == turn
    ]
