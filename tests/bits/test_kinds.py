"""Tensors of unusual kinds: stepped, or refused by their name."""

from __future__ import annotations

import pytest
import torch
from torch.func import functionalize, grad, vmap

import fusedopt
from fusedopt import _native, local_tensor, part_of
from helpers import scaled_step


@pytest.fixture(params=["library", "exchange table"], autouse=True)
def way(request):
    """How tensors are read in a test."""
    _native.attach(torch, local_tensor, part_of, use_library=request.param == "library")
    yield
    _native.attach(torch, local_tensor, part_of)


def ones():
    return torch.ones(3)


def functional():
    return torch._to_functional_tensor(ones())


def zeros():
    return torch._efficientzerotensor(3)


# A parameter and its gradient, and what is said of them.
KINDS = {
    "mkldnn": (lambda: ones().to_mkldnn(), lambda: ones().to_mkldnn(),
               r"the parameter is of layout torch\._mkldnn"),
    "zero parameter": (zeros, ones, "the parameter is a zero tensor"),
    "functional parameter": (functional, functional, "the parameter is a functionalized tensor"),
    "functional gradient": (ones, functional, "the gradient is a functionalized tensor"),
    "sparse gradient": (ones, lambda: ones().to_sparse(),
                        r"the gradient is sparse \(torch\.sparse_coo\)"),
}  # fmt: skip


def refused(params, message, exception=RuntimeError):
    """A step that is refused, and leaves the parameter ahead of the others as it is."""
    first = torch.nn.Parameter(ones())
    first.grad = ones()
    optimizer = fusedopt.SGD([first, *params], lr=0.5)
    with pytest.raises(exception, match=f"parameter group 0, parameter 1: {message}"):
        optimizer.step()
    assert first.tolist() == [1] * 3
    assert not optimizer.state


@pytest.mark.parametrize(("param", "grad", "message"), KINDS.values(), ids=KINDS)
def test_is_named(param, grad, message):
    param = param().requires_grad_()
    param.grad = grad()
    refused([param], message)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named():
    param = torch.nn.Parameter(torch.nested.nested_tensor([torch.ones(2), ones()]))
    torch.nested.to_padded_tensor(param, 0.0).sum().backward()
    refused([param], "the parameter is a nested tensor")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_tensors_are_named():
    nested = torch.nested.nested_tensor([torch.ones(2), ones()], layout=torch.jagged)
    param = torch.nn.Parameter(nested)
    param.grad = torch.ones_like(nested)
    with pytest.raises(TypeError, match="cannot step a tensor of class NestedTensor"):
        fusedopt.SGD([param], lr=0.5).step()
    assert param.values().tolist() == [1] * 5


def test_meta_tensors_are_named():
    param = torch.nn.Parameter(torch.ones(3, device="meta"))
    param.grad = torch.ones(3, device="meta")
    refused([param], "the parameter of type torch.float32 on device meta", NotImplementedError)


def test_a_state_of_zeros_is_named():
    param = torch.nn.Parameter(ones())
    param.grad = ones()
    optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.5)
    optimizer.state[param]["momentum_buffer"] = zeros()
    with pytest.raises(RuntimeError, match="parameter 0: momentum_buffer is a zero tensor"):
        optimizer.step()
    assert param.tolist() == [1] * 3


@pytest.mark.parametrize("scale", [None, 4.0])
def test_a_gradient_of_zeros_is_zeros(scale):
    results = []
    for gradient in (zeros(), torch.zeros(3)):
        param = torch.nn.Parameter(ones())
        param.grad = gradient
        optimizer = fusedopt.SGD([param], lr=0.5, momentum=0.5, weight_decay=0.25)
        for _ in range(2):
            scaled_step(optimizer, scale)
        results.append(param.tolist())
    assert results[0] == results[1]


def step_inside(value):
    """What a transform of torch.func makes of a step."""
    param = value.detach()
    param.grad = torch.ones_like(param)
    message = "the parameter is a (tensor inside|functionalized)|inside torch.func.grad"
    with pytest.raises(RuntimeError, match=message):
        fusedopt.SGD([param]).step()
    return value.sum()


@pytest.mark.parametrize("transform", [vmap, grad, functionalize])
def test_steps_inside_of_a_transform_are_refused(transform):
    value = torch.ones(2, 3) if transform is vmap else ones()
    transform(step_inside)(value)


def test_a_gradient_of_a_transform_is_named():
    param = torch.nn.Parameter(ones())

    def step(value):
        param.grad = value * 1
        refused([param], "the gradient is a tensor inside of a transform of torch.func")
        return value

    vmap(step)(torch.ones(2, 3))


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="not in this torch")
@pytest.mark.parametrize("grad_dtype", [torch.bfloat16, None], ids=str)
def test_gradients_of_another_dtype_are_stepped(grad_dtype):
    param = torch.nn.Parameter(ones())
    param.grad_dtype = grad_dtype
    param.grad = ones().bfloat16()
    fusedopt.SGD([param], lr=0.5).step()
    assert torch.equal(param.detach(), ones() - 0.5)
