"""What constructors and steps do not take: kinds of tensors, and options out of bounds."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.rows import ROWS

# Each makes one parameter of a group, or the group's options, such that a step is refused.


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_complex_parameters_are_refused(dtype):
    param = torch.nn.Parameter(torch.zeros(3, dtype=dtype))
    param.grad = torch.zeros(3, dtype=dtype)
    with pytest.raises(RuntimeError, match=r"group 0, parameter 0.*complex"):
        fusedopt.SGD([param]).step()


def test_integer_parameters_are_refused_only_with_a_gradient():
    frozen = torch.nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)
    live = torch.nn.Parameter(torch.ones(3))
    live.grad = torch.ones(3)
    optimizer = fusedopt.SGD([frozen, live], lr=0.5)
    optimizer.step()
    assert torch.equal(live, torch.full((3,), 0.5))
    frozen.grad = torch.zeros(3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match=r"group 0, parameter 0.*integer"):
        optimizer.step()
    assert torch.equal(live, torch.full((3,), 0.5))


def test_device_without_an_engine_is_refused():
    live, meta = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3, device="meta"))
    live.grad, meta.grad = torch.ones(3), torch.ones(3, device="meta")
    with pytest.raises(NotImplementedError, match=r"group 0, parameter 1.*meta"):
        fusedopt.SGD([live, meta], lr=0.5).step()
    assert torch.equal(live, torch.ones(3))


def test_name_of_the_parameter_is_in_the_message():
    model = torch.nn.Linear(2, 2)
    optimizer = fusedopt.Adam(model.named_parameters())
    model.weight.grad = torch.ones(2, 2)
    model.bias.grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match=r"parameter group 0, parameter 1 \('bias'\)"):
        optimizer.step()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_differentiable_is_not_supported(row):
    params = [torch.nn.Parameter(torch.zeros(2))]
    with pytest.raises(NotImplementedError, match="differentiable"):
        row.optimizer(params, differentiable=True)
    optimizer = row.optimizer(params)
    with pytest.raises(NotImplementedError, match=r"parameter group 1.*differentiable"):
        optimizer.add_param_group(
            {"params": [torch.nn.Parameter(torch.zeros(2))], "differentiable": True}
        )
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_constructor_refuses_fused_with_foreach_as_torch_does(row):
    """Torch looks at the arguments only: a group or a checkpoint may have both."""
    both = {"fused": True, "foreach": True}
    message = "^`fused` and `foreach` cannot be `True` together.$"
    for optimizer_class in (row.optimizer, row.torch_optimizer or row.optimizer):
        params = [torch.nn.Parameter(torch.zeros(2))]
        if "fused" in inspect.signature(optimizer_class).parameters:
            with pytest.raises(RuntimeError, match=message):
                optimizer_class(params, **both)
        optimizer = optimizer_class([{"params": params, **both}])
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))], **both})
        optimizer.load_state_dict(optimizer.state_dict())
        assert all(group["fused"] and group["foreach"] for group in optimizer.param_groups)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_constructor_refuses_negative_options(row, option):
    with pytest.raises(ValueError, match="Invalid"):
        row.optimizer([torch.nn.Parameter(torch.zeros(2))], **{option: -1.0})


@pytest.mark.parametrize("row", [r for r in ROWS if r.torch_optimizer], ids=lambda row: row.name)
@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"eps": -1.0}, {"betas": (1.0, 0.5)}, {"betas": (0.5, -0.1)}, {"rho": 1.1},
     {"momentum": -1.0}, {"alpha": -1.0}, {"lr_decay": -1.0}, {"nesterov": True},
     {"initial_accumulator_value": -1.0}, {"lr": torch.tensor([0.1, 0.2])}, {"unknown": 1}],
    ids=str,
)  # fmt: skip
def test_constructor_errors_are_torchs(row, options):
    params = [torch.nn.Parameter(torch.zeros(2))]
    expected = outcome(row.torch_optimizer, params, options)
    ours = outcome(row.optimizer, params, options)
    assert ours == expected


def outcome(optimizer, params, options):
    """The exception and its text; that of a wrong argument names the class, so its type."""
    try:
        optimizer(params, **options)
    except TypeError as error:
        return type(error)
    except Exception as error:
        return type(error), str(error)
    return None


@pytest.mark.parametrize("params", [3, None, object()], ids=["a number", "None", "an object"])
def test_params_that_cannot_be_iterated_over_are_refused(params):
    optimizer = fusedopt.SGD([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"] = params
    with pytest.raises(TypeError, match="parameter group 0: 'params' must be a list"):
        optimizer.step()


@pytest.mark.parametrize("freed", ["param", "grad", "state"])
def test_freed_memory_is_refused(freed):
    param = torch.nn.Parameter(torch.ones(100))
    param.grad = torch.ones(100)
    optimizer = fusedopt.SGD([param], lr=1.0, momentum=0.9)
    optimizer.step()
    tensor = {"param": param, "grad": param.grad,
              "state": optimizer.state[param]["momentum_buffer"]}[freed]  # fmt: skip
    tensor.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"group 0, parameter 0: .* has no memory"):
        optimizer.step()


def test_negated_parameter_is_refused():
    param = torch._neg_view(torch.ones(3)).requires_grad_()
    param.grad = torch.ones(3)
    with pytest.raises(ValueError, match="group 0, parameter 0: the parameter is a negated view"):
        fusedopt.SGD([param]).step()
    assert param.tolist() == [-1] * 3


def test_wrapper_subclass_is_refused():
    from torch.testing._internal.two_tensor import TwoTensor

    param = torch.nn.Parameter(TwoTensor(torch.ones(3), torch.ones(3)))
    param.grad = TwoTensor(torch.ones(3), torch.ones(3))
    with pytest.raises(TypeError, match="TwoTensor"):
        fusedopt.SGD([param]).step()


def test_subclass_over_plain_memory_is_stepped():
    class Named(torch.nn.Parameter):
        pass

    param = Named(torch.ones(3))
    param.grad = torch.ones(3)
    fusedopt.SGD([param], lr=0.5).step()
    assert np.array_equal(param.detach().numpy(), [0.5, 0.5, 0.5])
