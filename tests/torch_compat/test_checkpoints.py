"""Checkpoints: old ones, other dtypes, files, and what loading does to the state.

tests/torch_compat/test_torch.py exchanges them with torch in mid-training, with every option.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from helpers import bits, snapshot

TORCH_CASES = [case for case in CASES if case.row.torch_optimizer]
TORCH_ROWS = [row for row in ROWS if row.torch_optimizer]
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
each_torch_row = pytest.mark.parametrize("row", TORCH_ROWS, ids=lambda row: row.name)


def first_keys(torch_optimizer):
    """What a group had when torch's class was new: it loads a group without the rest."""
    optimizer = torch_optimizer([torch.zeros(1)])
    optimizer.__setstate__({"state": {}, "param_groups": [{"params": []}]})
    return optimizer.defaults.keys() - optimizer.param_groups[0].keys()


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn((4, 6), generator=generator).t(),
        torch.randn((600,), generator=generator),
        torch.randn((2, 3, 4, 5), generator=generator).to(memory_format=torch.channels_last),
        torch.randn((), generator=generator),
    ]
    return [torch.nn.Parameter(param.to(dtype)) for param in params]


def params_of(optimizer):
    return [param for group in optimizer.param_groups for param in group["params"]]


def steps(optimizer, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for param in params_of(optimizer):
            grad = torch.randn(param.shape, generator=generator)
            param.grad = torch.zeros_like(param).copy_(grad)
        optimizer.step()


def started(optimizer_class, dtype=torch.float32, count=3, **options):
    optimizer = optimizer_class(parameters(dtype), **options)
    steps(optimizer, count)
    return optimizer


def loaded(optimizer_class, source, checkpoint, **options):
    """A new optimizer on copies of the parameters, with the checkpoint's state."""
    params = [torch.nn.Parameter(param.detach().clone()) for param in params_of(source)]
    optimizer = optimizer_class(params, **options)
    optimizer.load_state_dict(copy.deepcopy(checkpoint))
    return optimizer


def assert_same_bits(ours, others):
    """Parameters and states as integers, step counts as numbers of whatever dtype."""
    for p, q in zip(params_of(ours), params_of(others), strict=True):
        assert np.array_equal(bits(p), bits(q))
        mine, theirs = ours.state[p], others.state[q]
        assert mine.keys() == theirs.keys()
        for name in mine:
            if name == "step":
                assert mine[name].item() == theirs[name].item()
            else:
                assert mine[name].dtype == theirs[name].dtype
                assert np.array_equal(bits(mine[name]), bits(theirs[name]))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_file_resumes_to_the_bit(case, dtype):
    optimizer = started(case.row.optimizer, dtype, **case.options)
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    stream.seek(0)
    resumed = loaded(case.row.optimizer, optimizer, torch.load(stream, weights_only=True))
    assert_same_bits(resumed, optimizer)
    steps(optimizer, 3, seed=5)
    steps(resumed, 3, seed=5)
    assert_same_bits(resumed, optimizer)


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_state_dict_of_torch_and_of_ours_have_one_form(case):
    ours = started(case.row.optimizer, **case.options).state_dict()
    theirs = started(case.row.torch_optimizer, **case.options).state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, state in theirs["state"].items():
        assert list(ours["state"][index]) == list(state)
        assert [type(value) for value in ours["state"][index].values()] == [
            type(value) for value in state.values()
        ]


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
def test_ours_loads_what_torch_saved_to_the_bit(case):
    """And back: what torch loads of ours is, as integers, what ours held."""
    theirs = started(case.row.torch_optimizer, **case.options)
    ours = loaded(case.row.optimizer, theirs, theirs.state_dict())
    assert_same_bits(ours, theirs)
    steps(ours, 2, seed=7)
    back = loaded(case.row.torch_optimizer, ours, ours.state_dict())
    assert_same_bits(back, ours)


@each_torch_row
def test_first_checkpoints(row):
    """Groups with the keys that the class had at first, and step counts that are integers."""
    optimizer = started(row.torch_optimizer, **row.usual)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for group in checkpoint["param_groups"]:
        for key in set(group) - {*first_keys(row.torch_optimizer), "params"}:
            del group[key]
    for state in checkpoint["state"].values():
        if "step" in state:
            state["step"] = 3
    old = loaded(row.optimizer, optimizer, checkpoint)
    new = loaded(row.optimizer, optimizer, optimizer.state_dict())
    theirs = loaded(row.torch_optimizer, optimizer, checkpoint)  # fills in what is not there
    expected = [
        {**group, **filled, "params": None}
        for group, filled in zip(new.param_groups, theirs.param_groups, strict=True)
    ]
    assert [{**group, "params": None} for group in old.param_groups] == expected
    for state in old.state.values():
        assert "step" not in state or state["step"].dtype == torch.float32
    steps(old, 3, seed=5)
    steps(new, 3, seed=5)
    assert_same_bits(old, new)


@pytest.mark.parametrize(
    "step",
    [3, torch.tensor(3), torch.tensor(3.0, dtype=torch.float64), torch.tensor([3.0]),
     torch.tensor(3, dtype=torch.int32)],
    ids=["int", "int64", "float64", "a vector of one", "int32"],
)  # fmt: skip
@each_torch_row
def test_step_counts_of_every_form(row, step):
    """They go on counting, in the form that they have."""
    optimizer = started(row.optimizer)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for state in checkpoint["state"].values():
        if "step" in state:
            state["step"] = copy.deepcopy(step)
    other = loaded(row.optimizer, optimizer, checkpoint)
    steps(optimizer, 2, seed=5)
    steps(other, 2, seed=5)
    assert_same_bits(other, optimizer)
    if isinstance(step, torch.Tensor):
        for state in other.state.values():
            assert "step" not in state or state["step"].dtype == step.dtype


@pytest.mark.parametrize("case", TORCH_CASES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_takes_the_dtype_of_the_parameter(case, dtype):
    """torch's rule, which leaves step counts alone; here from float32, and from it, to the bit."""
    for saved_in, loaded_in in ((torch.float32, dtype), (dtype, torch.float32)):
        source = started(case.row.optimizer, saved_in, **case.options)
        results = []
        for optimizer_class in (case.row.optimizer, case.row.torch_optimizer):
            optimizer = optimizer_class(parameters(loaded_in))
            optimizer.load_state_dict(copy.deepcopy(source.state_dict()))
            results.append(optimizer)
        assert_same_bits(*results)
        for param in params_of(results[0]):
            for name, value in results[0].state[param].items():
                assert value.dtype == (torch.float32 if name == "step" else loaded_in)
        steps(results[0], 1)


@pytest.mark.parametrize("moment", ["empty", "one of several"])
@each_row
def test_checkpoint_without_the_state_of_a_parameter(row, moment):
    """A parameter that has had no gradient has no state, before and after."""
    params = parameters()
    optimizer = row.optimizer(params)
    if moment == "one of several":
        params[1].grad = torch.ones_like(params[1])
        optimizer.step()
        params[1].grad = None
    resumed = loaded(row.optimizer, optimizer, optimizer.state_dict())
    assert len(resumed.state) == len(optimizer.state)
    steps(optimizer, 2, seed=5)
    steps(resumed, 2, seed=5)
    assert_same_bits(resumed, optimizer)


@each_row
def test_checkpoint_of_another_model_is_refused_and_changes_nothing(row):
    optimizer = started(row.optimizer)
    fewer = row.optimizer(parameters()[:2]).state_dict()
    more_groups = row.optimizer([{"params": [p]} for p in parameters()]).state_dict()
    before = snapshot(optimizer)
    for checkpoint in (fewer, more_groups):
        with pytest.raises(ValueError, match="loaded state dict"):
            optimizer.load_state_dict(checkpoint)
    assert snapshot(optimizer) == before


@each_row
def test_checkpoint_that_is_differentiable_is_refused_and_changes_nothing(row):
    """The constructor refuses it, and so must the other way in."""
    source = (row.torch_optimizer or row.optimizer)([{"params": [p]} for p in parameters()])
    optimizer = row.optimizer([{"params": [p]} for p in parameters()])
    steps(optimizer, 2)
    checkpoint = source.state_dict()
    checkpoint["param_groups"][2]["differentiable"] = True
    before, groups = snapshot(optimizer), list(optimizer.param_groups)
    with pytest.raises(NotImplementedError, match="parameter group 2: differentiable=True"):
        optimizer.load_state_dict(checkpoint)
    assert snapshot(optimizer) == before
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))


@each_row
def test_options_come_from_the_checkpoint(row):
    """Those of the constructor serve only what the checkpoint does not have."""
    optimizer = started(row.optimizer, lr=0.25, weight_decay=0.5, maximize=True)
    resumed = loaded(row.optimizer, optimizer, optimizer.state_dict(), lr=123.0, weight_decay=9.0)
    steps(optimizer, 2, seed=5)
    steps(resumed, 2, seed=5)
    assert_same_bits(resumed, optimizer)


@each_row
def test_load_hooks_see_and_may_replace_the_checkpoint(row):
    optimizer = started(row.optimizer, lr=0.25)
    other = row.optimizer(parameters())
    calls = []

    def halve(_, state_dict):
        state_dict["param_groups"] = [{**g, "lr": g["lr"] / 2} for g in state_dict["param_groups"]]
        return state_dict

    other.register_load_state_dict_pre_hook(halve)
    other.register_load_state_dict_post_hook(lambda o: calls.append(o.param_groups[0]["lr"]))
    other.load_state_dict(state_dict=optimizer.state_dict())
    assert calls == [0.125]


@each_torch_row
def test_capturable_of_ours_is_not_lost_or_invented(row):
    """A group of torch's SGD or Adagrad does not have the key; torch ignores ours."""
    source = row.torch_optimizer(parameters())
    assert "capturable" not in source.defaults or not source.defaults["capturable"]
    plain = loaded(row.optimizer, source, source.state_dict())
    assert ("capturable" in plain.param_groups[0]) == ("capturable" in source.defaults)
    capturable = row.optimizer(parameters(), capturable=True)
    other = row.optimizer(parameters(), capturable=True)
    other.load_state_dict(capturable.state_dict())
    assert other.param_groups[0]["capturable"] is True
    back = row.torch_optimizer(parameters())
    back.load_state_dict(capturable.state_dict())
    assert back.param_groups[0]["capturable"] is True


@each_row
def test_named_parameters(row):
    """Their names are saved, and do not decide what is loaded."""
    named = [(f"layer.{i}", param) for i, param in enumerate(parameters())]
    optimizer = row.optimizer(named)
    steps(optimizer, 2)
    checkpoint = optimizer.state_dict()
    names = [name for name, _ in named]
    assert checkpoint["param_groups"][0]["param_names"] == names
    resumed = loaded(row.optimizer, optimizer, checkpoint)
    assert resumed.param_groups[0]["param_names"] == names
    if row.torch_optimizer:
        theirs = loaded(row.torch_optimizer, optimizer, checkpoint)
        assert theirs.param_groups[0]["param_names"] == names
        assert_same_bits(theirs, optimizer)
    steps(optimizer, 2, seed=5)
    steps(resumed, 2, seed=5)
    assert_same_bits(resumed, optimizer)


@each_row
def test_state_that_has_been_looked_at(row):
    """Looking at the state of a parameter that has none makes an empty one."""
    optimizers = [row.optimizer(parameters()) for _ in range(2)]
    for param in params_of(optimizers[0]):
        assert isinstance(optimizers[0].state[param], dict)
    for optimizer in optimizers:
        steps(optimizer, 2)
    assert_same_bits(*optimizers)


@each_row
def test_distributed_checkpoints_form(row):
    """Its loader creates the state by a step with gradients of zero, which must change nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import, where no process group is there
        from torch.distributed.checkpoint import state_dict as distributed

    def model_and_optimizer():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        return model, row.optimizer(model.parameters(), weight_decay=0.1)

    model, optimizer = model_and_optimizer()
    steps(optimizer, 3)
    checkpoint = distributed.get_optimizer_state_dict(model, optimizer)
    other, resumed = model_and_optimizer()
    other.load_state_dict(model.state_dict())
    distributed.set_optimizer_state_dict(other, resumed, copy.deepcopy(checkpoint))
    assert_same_bits(resumed, optimizer)
    steps(optimizer, 2, seed=5)
    steps(resumed, 2, seed=5)
    assert_same_bits(resumed, optimizer)


def test_momentum_buffer_of_another_layout():
    """A checkpoint's state has the strides that it was saved with, not the parameter's."""
    optimizer = started(fusedopt.SGD, momentum=0.9)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    for state in checkpoint["state"].values():
        state["momentum_buffer"] = state["momentum_buffer"].contiguous()
    resumed = loaded(fusedopt.SGD, optimizer, checkpoint)
    steps(optimizer, 2, seed=5)
    steps(resumed, 2, seed=5)
    assert_same_bits(resumed, optimizer)


def test_momentum_buffer_has_the_strides_of_the_parameter():
    """As all other state has; torch's is a copy of the first gradient, in its strides."""
    strides = []
    for optimizer_class in (fusedopt.SGD, torch.optim.SGD):
        param = torch.nn.Parameter(torch.ones(4, 6).t())
        param.grad = torch.ones(6, 4)
        optimizer = optimizer_class([param], momentum=0.9)
        optimizer.step()
        strides.append(optimizer.state[param]["momentum_buffer"].stride())
    assert strides == [(1, 6), (4, 1)]


@each_row
def test_pickles_name_the_package_and_not_a_file(row):
    optimizer = started(row.optimizer)
    pickled = pickle.dumps(optimizer)
    assert b"fusedopt" in pickled
    assert b"fusedopt." not in pickled
    assert repr(row.optimizer) == f"<class 'fusedopt.{row.name}'>"
    assert_same_bits(pickle.loads(pickled), optimizer)


def test_optimizers_pickled_by_an_earlier_version():
    """Which had the files of the classes in the package itself, and two classes in one of them."""
    pickled = Path(__file__).with_name("pickled-earlier.pkl").read_bytes()
    adamw, nesterov = pickle.loads(pickled)
    for optimizer, optimizer_class in ((adamw, fusedopt.AdamW), (nesterov, fusedopt.Nesterov)):
        assert type(optimizer) is optimizer_class
        param = torch.nn.Parameter(torch.arange(3.0))
        other = optimizer_class([param], lr=0.5)
        param.grad = torch.ones(3)
        other.step()
        assert_same_bits(optimizer, other)
        steps(optimizer, 2)
        steps(other, 2)
        assert_same_bits(optimizer, other)
