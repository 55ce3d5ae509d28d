"""Every input and every error that torch's own tests try its optimizers with, tried on ours."""

from __future__ import annotations

import copy
import importlib
import inspect
import itertools
import re
import sys
import types
import unittest
import warnings

import numpy as np
import pytest
import torch

from fusedopt.checking.rows import ROWS
from helpers import bits, snapshot


def load_torchs_table():
    """The module, without expecttest and hypothesis, which only torch's own test cases need."""
    stand_in = types.ModuleType("expecttest")
    stand_in.TestCase = unittest.TestCase
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = sys.modules.setdefault("expecttest", stand_in)
        table = importlib.import_module("torch.testing._internal.common_optimizers")
    if used is stand_in:
        del sys.modules["expecttest"]
    return table


TABLE = load_torchs_table()
INFOS = {info.optim_cls: info for info in TABLE.optim_db}
PAIRS = [(row, INFOS[row.torch_optimizer]) for row in ROWS if row.torch_optimizer]
SHAPES = ((), (1,), (3, 5), (0,), (2, 3, 4, 2), (700,))
STEPS = 6

FOR_LOOP = {"foreach": False}
FLAGS = ({}, {"foreach": False}, {"foreach": True}, {"fused": True}, {"fused": False})


def inputs_of(info):
    """The inputs for the CPU, and those for a GPU without what only a GPU can do.

    The latter have learning rates and betas that are tensors, on the CPU here too.
    """
    inputs = [
        *info.optim_inputs_func(device="cpu"),
        *(i for i in info.optim_inputs_func(device="cuda") if "capturable" in i.kwargs),
    ]
    for given in inputs:
        kwargs = {key: value for key, value in given.kwargs.items() if key != "capturable"}
        yield given.desc.replace("capturable", "from capturable"), kwargs


INPUTS = [
    pytest.param(row, kwargs, id=f"{row.name}-{desc}")
    for row, info in PAIRS
    for desc, kwargs in inputs_of(info)
]
ERRORS = [
    pytest.param(row, given, id=f"{row.name}-{given.optimizer_error_input.desc}")
    for row, info in PAIRS
    for given in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]
each_class = pytest.mark.parametrize(("row", "info"), PAIRS, ids=[row.name for row, _ in PAIRS])


def parameters(seed=0):
    """Parameters of several shapes, dtypes and layouts, in two groups."""
    generator = torch.Generator().manual_seed(seed)
    params = [
        torch.randn(shape, generator=generator, dtype=dtype)
        for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.float64))
    ]
    params[8] = params[8].to(memory_format=torch.channels_last)
    params[4] = params[4].t()
    params = [torch.nn.Parameter(param) for param in params]
    return [{"params": params[::2]}, {"params": params[1::2]}]


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def run_steps(optimizer, steps=STEPS, seed=1):
    """Steps on the same gradients for everyone; a parameter goes without one now and then.

    Gradients have the parameter's strides, as those of autograd do.
    """
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for index, param in enumerate(params_of(optimizer)):
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = None if (step + index) % 5 == 3 else torch.zeros_like(param).copy_(grad)
        optimizer.step()


def tolerance(dtype, options):
    """For the same formula in the same order, over six steps.

    torch contracts some multiplications and additions into one rounding, and our Adam multiplies by
    1 / sqrt(bias_correction2) where torch divides: a few roundings a step. Where an option is a
    float32 tensor, torch derives its scalars in float32, where ours are in double.
    """
    flat = itertools.chain.from_iterable(
        value if isinstance(value, tuple) else (value,) for value in options.values()
    )
    if any(isinstance(value, torch.Tensor) and value.dtype == torch.float32 for value in flat):
        dtype = torch.float32
    bound = 32 * torch.finfo(dtype).eps
    return {"rtol": bound, "atol": bound}


def assert_same(ours, theirs, options=None):
    """Parameters and states are close, step counts equal, and dtypes, strides and groups too."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        close = tolerance(q.dtype, options or {})
        torch.testing.assert_close(p, q, **close)
        assert ours.state[p].keys() == theirs.state[q].keys()
        for name, expected in theirs.state[q].items():
            mine = ours.state[p][name]
            torch.testing.assert_close(mine, expected, **({} if name == "step" else close))
            assert (mine.dtype, mine.stride()) == (expected.dtype, expected.stride())
            if name == "step":
                assert mine.item() == expected.item()


def outcome(construct):
    """What came of it: warnings, and the exception's type and message."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        error = None
        try:
            construct()
        except Exception as exception:
            error = exception
    texts = [(warning.category, str(warning.message)) for warning in caught]
    return texts, type(error), str(error)


@pytest.mark.parametrize(("row", "options"), INPUTS)
def test_trajectory_of_every_input(row, options):
    theirs = row.torch_optimizer(parameters(), **copy.deepcopy(options), **FOR_LOOP)
    run_steps(theirs)
    ours = row.optimizer(parameters(), **copy.deepcopy(options))
    run_steps(ours)
    assert_same(ours, theirs, options)


# Each for the classes that have all of its options.
EDGES = (
    {"lr": 0}, {"lr": 0, "weight_decay": 1}, {"weight_decay": 100}, {"eps": 0}, {"eps": 1e30},
    {"lr": 1, "momentum": 1.5}, {"momentum": 2}, {"momentum": 0.5, "dampening": -2.0},
    {"momentum": 0.5, "dampening": 1}, {"dampening": 0, "weight_decay": torch.tensor(0.1).double()},
    {"lr_decay": 3}, {"alpha": 0}, {"alpha": 1}, {"centered": 1}, {"rho": 0}, {"rho": 1.0},
    {"betas": (0.0, 0.0)}, {"betas": (torch.tensor(0.5).double(), torch.tensor(0.7).double())},
    {"betas": (0.9, 0.999), "eps": float("inf")}, {"amsgrad": 1, "maximize": 1},
)  # fmt: skip


@each_class
def test_options_at_the_edge_of_what_torch_takes(row, info):
    """Also integers for floats and for flags, as torch takes them."""
    known = inspect.signature(row.torch_optimizer).parameters.keys()
    for options in (options for options in EDGES if options.keys() <= known):
        optimizers = (
            row.optimizer(parameters(), **copy.deepcopy(options)),
            row.torch_optimizer(parameters(), **copy.deepcopy(options), **FOR_LOOP),
        )
        for optimizer in optimizers:
            run_steps(optimizer, 3)
        assert_same(*optimizers, options)


@pytest.mark.parametrize(("row", "options"), INPUTS)
def test_flags_change_no_bits_and_raise_what_torch_raises(row, options):
    """An implementation flag is refused where torch refuses it, else it selects nothing."""
    plain = row.optimizer(parameters(), **copy.deepcopy(options))
    run_steps(plain)
    known = inspect.signature(row.torch_optimizer).parameters
    for flags in FLAGS:
        if all(flag in known for flag in flags):
            expected = outcome(lambda: row.torch_optimizer(parameters(), **options, **flags))  # noqa: B023
            assert outcome(lambda: row.optimizer(parameters(), **options, **flags)) == expected  # noqa: B023
            if expected[1] is not type(None):
                continue
        flagged = row.optimizer(parameters(), **copy.deepcopy(options), **flags)
        run_steps(flagged)
        for p, q in zip(params_of(flagged), params_of(plain), strict=True):
            assert np.array_equal(bits(p), bits(q))


@pytest.mark.parametrize(("row", "options"), INPUTS)
def test_learning_rate_as_a_tensor(row, options):
    lr = options.get("lr", inspect.signature(row.optimizer).parameters["lr"].default)
    options = {**options, "lr": torch.as_tensor(lr, dtype=torch.float64)}
    results = []
    for optimizer_class, flags in ((row.optimizer, {}), (row.torch_optimizer, FOR_LOOP)):
        optimizer = optimizer_class(parameters(), **copy.deepcopy(options), **flags)
        run_steps(optimizer, 3)
        optimizer.param_groups[0]["lr"].mul_(0.5)
        run_steps(optimizer, 3, seed=2)
        results.append(optimizer)
    assert_same(*results, options)


@pytest.mark.parametrize(("row", "given"), ERRORS)
def test_every_error(row, given):
    """The type and the whole message of torch's, at the same moment."""

    def attempt(optimizer_class):
        params, kwargs = given.optimizer_error_input.params, given.optimizer_error_input.kwargs
        if isinstance(params, list):
            params = [dict(p) if isinstance(p, dict) else p for p in params]
        if given.error_on == TABLE.OptimizerErrorEnum.CONSTRUCTION_ERROR:
            return outcome(lambda: optimizer_class(params, **kwargs))
        return outcome(optimizer_class(params, **kwargs).step)

    ours = attempt(row.optimizer)
    assert ours == attempt(row.torch_optimizer)
    texts, error, message = ours
    happened = [*texts, (error, message)]
    assert any(
        issubclass(kind, given.error_type) and re.search(given.error_regex, text)
        for kind, text in happened
    )


@each_class
def test_flags_that_exclude_each_other(row, info):
    """The errors that torch's table has for GPUs only, though they do not depend on the device."""
    if "fused" in info.supported_impls:
        both = {"foreach": True, "fused": True}
        theirs = outcome(lambda: row.torch_optimizer(parameters(), **both))
        assert theirs[1] is RuntimeError
        assert outcome(lambda: row.optimizer(parameters(), **both)) == theirs
    # RuntimeError in torch, of which ours is a kind
    with pytest.raises(RuntimeError, match="differentiable"):
        row.optimizer(parameters(), fused=True, differentiable=True)


@each_class
def test_capturable_is_an_assertion_error_on_the_cpu(row, info):
    for kwargs in [i.kwargs for i in info.optim_inputs_func(device="cuda")]:
        if not kwargs.get("capturable"):
            continue
        for optimizer_class, flags in ((row.torch_optimizer, FOR_LOOP), (row.optimizer, {})):
            optimizer = optimizer_class(parameters(), **copy.deepcopy(kwargs), **flags)
            for group in optimizer.param_groups:
                for param in group["params"]:
                    param.grad = torch.ones_like(param)
            before = snapshot(optimizer) if optimizer_class is row.optimizer else None
            with pytest.raises(AssertionError, match="capturable=True"):
                optimizer.step()
            assert before is None or snapshot(optimizer) == before


@each_class
def test_metadata_holds_for_ours(row, info):
    known = inspect.signature(row.optimizer).parameters
    assert {*info.supported_impls, "fused", "capturable"} <= set(known)
    assert issubclass(row.optimizer, info.optim_cls)
    assert not info.step_requires_closure
    assert not info.only_supports_sparse_grads


@each_class
def test_what_torch_can_and_ours_refuses(row, info):
    """differentiable, sparse gradients and complex parameters, whether torch has them or not."""
    with pytest.raises(NotImplementedError, match="differentiable"):
        row.optimizer(parameters(), differentiable=True)

    sparse_options, _ = info.metadata_for_sparse
    for options in ({}, sparse_options):
        optimizer = row.optimizer([torch.nn.Parameter(torch.ones(3, 2))], **options)
        params_of(optimizer)[0].grad = torch.ones(3, 2).to_sparse()
        before = snapshot(optimizer)
        with pytest.raises(RuntimeError, match="the gradient is sparse"):
            optimizer.step()
        assert snapshot(optimizer) == before

    param = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    param.grad = torch.ones_like(param)
    optimizer = row.optimizer([param])
    with pytest.raises(RuntimeError, match="complex"):
        optimizer.step()
    assert torch.equal(param, torch.ones_like(param))


@each_class
def test_schedulers_of_the_table(row, info):
    """One or several schedulers at once, as torch tries them with this class."""
    for constructors in info.scheduler_inputs:
        results = []
        for optimizer_class, flags in ((row.optimizer, {}), (row.torch_optimizer, FOR_LOOP)):
            optimizer = optimizer_class(parameters(), lr=0.01, **flags)
            schedulers = [constructor(optimizer) for constructor in constructors]
            for step in range(12):
                run_steps(optimizer, 1, seed=step)
                for scheduler in schedulers:
                    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
                        scheduler.step(1.0)
                    else:
                        scheduler.step()
            results.append(optimizer)
        rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in results]
        assert rates[0] == rates[1]
        assert_same(*results)


@each_class
def test_older_checkpoints(row, info):
    """Without the options that the class did not have from the start, and with steps as numbers."""
    for given in info.optim_inputs_func(device="cpu"):
        options = copy.deepcopy(given.kwargs)
        theirs = row.torch_optimizer(parameters(), **options)
        run_steps(theirs, 2)
        checkpoint = copy.deepcopy(theirs.state_dict())
        for group in checkpoint["param_groups"]:
            for flag in info.not_og_supported_flags:
                if flag in group and flag not in options:
                    del group[flag]
        for state in checkpoint["state"].values():
            if "step" in state:
                state["step"] = int(state["step"].item())
        resumed = []
        for optimizer_class, flags in ((row.optimizer, {}), (row.torch_optimizer, FOR_LOOP)):
            optimizer = optimizer_class(parameters(), **flags)
            optimizer.load_state_dict(copy.deepcopy(checkpoint))  # which the state would share
            run_steps(optimizer, 3, seed=3)
            resumed.append(optimizer)
        assert_same(*resumed, options)
