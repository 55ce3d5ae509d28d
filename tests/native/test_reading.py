"""How tensors are read: by asking torch's library, and through the exchange table."""

from __future__ import annotations

import pytest
import torch

import fusedopt
from fusedopt import _native, local_tensor, part_of
from fusedopt.checking.cases import CASES, DTYPES
from helpers import snapshot


@pytest.fixture(params=["library", "exchange table"])
def way(request):
    """How tensors are read in a test."""
    _native.attach(torch, local_tensor, part_of, use_library=request.param == "library")
    yield request.param
    _native.attach(torch, local_tensor, part_of)


def in_every_layout(dtype):
    """Parameters with gradients in all ways in which tensors lie in memory."""
    torch.manual_seed(0)
    for base in (torch.randn(6, 8), torch.randn(()), torch.randn(0, 3), torch.randn(2, 3, 4, 5)):
        grad = torch.randn(base.shape)
        yield base.to(dtype), grad.to(dtype)
        if base.dim() > 1:
            yield base.to(dtype).transpose(0, 1), grad.to(dtype).transpose(0, 1).contiguous()
            yield base.to(dtype)[1:], torch._neg_view(grad.to(dtype)[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_ways_give_the_same_bits_and_versions(dtype):
    def run(use_library):
        _native.attach(torch, local_tensor, part_of, use_library)
        results = []
        for case in CASES:
            params = []
            for param, grad in in_every_layout(dtype):
                params.append(param)
                param.grad = grad
            optimizer = case.row.optimizer(params, **case.options)
            for _ in range(2):
                optimizer.step()
            results.append(snapshot(optimizer))
        return results

    try:
        by_table, by_library = run(False), run(True)
    finally:
        _native.attach(torch, local_tensor, part_of)
    assert by_table == by_library


REFUSED_TENSORS = {
    "sparse": lambda: (torch.ones(3), torch.ones(3).to_sparse(), "is sparse"),
    "complex": lambda: (torch.ones(3, dtype=torch.complex64), None, "unsupported dtype"),
    "integer": lambda: (torch.ones(3, dtype=torch.int32), None, "unsupported dtype"),
    "bool": lambda: (torch.ones(3, dtype=torch.bool), None, "unsupported dtype"),
    "meta": lambda: (torch.ones(3, device="meta"), None, "cannot be accessed"),
}


@pytest.mark.parametrize("make", REFUSED_TENSORS.values(), ids=REFUSED_TENSORS)
def test_both_ways_refuse_the_same(make, way):
    param, grad, message = make()
    first = torch.ones(2)
    first.grad = torch.ones(2)
    param.grad = torch.ones_like(param) if grad is None else grad
    optimizer = fusedopt.SGD([first, param], lr=0.5)
    with pytest.raises((RuntimeError, NotImplementedError), match=message):
        optimizer.step()
    assert first.tolist() == [1, 1]


def test_a_freed_storage_is_refused(way):
    param = torch.ones(4)
    param.grad = torch.ones(4)
    param.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        fusedopt.SGD([param], lr=0.5).step()


def test_inference_tensors_have_no_version(way):
    with torch.inference_mode():
        param = torch.ones(3)
        param.grad = torch.ones(3)
        optimizer = fusedopt.SGD([param], lr=0.5)
        optimizer.step()
    assert param.tolist() == [0.5] * 3
    optimizer.step()
    assert param.tolist() == [0.0] * 3


class WaitsForANumber(torch.Tensor):
    """What a step asks for its memory, and which has none."""

    def trigger_wait(self):
        return 5


class CountsInNumbers(fusedopt.Adam):
    def _create_state(self, name, param, group):
        return 1.0 if name == "step" else super()._create_state(name, param, group)


def test_what_is_no_tensor_is_not_read_as_one(way):
    param, other = torch.ones(3), torch.ones(3)
    param.grad, other.grad = torch.ones(3), torch.ones(3).as_subclass(WaitsForANumber)
    with pytest.raises(
        TypeError, match="parameter 1: the gradient is not a tensor but of class int"
    ):
        fusedopt.SGD([param, other], lr=0.5).step()
    other.grad = None
    optimizer = CountsInNumbers([param])
    with pytest.raises(TypeError, match="state 'step' is not a tensor but of class float"):
        optimizer.step()
    assert param.tolist() == [1] * 3
    assert not optimizer.state


def adam_after_a_step():
    param = torch.ones(3)
    param.grad = torch.ones(3)
    optimizer = fusedopt.Adam([param], lr=torch.tensor(0.5))
    optimizer.step()
    return optimizer, optimizer.state[param]


def test_freed_numbers_are_refused(way):
    optimizer, state = adam_after_a_step()
    state["step"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="state 'step' has no memory"):
        optimizer.step()
    optimizer, _ = adam_after_a_step()
    optimizer.param_groups[0]["lr"].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="has no memory"):
        optimizer.step()


def test_negated_numbers_have_their_value_or_are_refused(way):
    optimizer, state = adam_after_a_step()
    state["step"] = torch._neg_view(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="state 'step' is a negated view"):
        optimizer.step()
    param = torch.zeros(2)
    param.grad = torch.ones(2)
    fusedopt.SGD([param], lr=torch._neg_view(torch.tensor(-0.5))).step()
    assert param.tolist() == [-0.5] * 2
    optimizer = fusedopt.SGD([param], lr=1.0)
    optimizer.grad_scale = torch._neg_view(torch.tensor(-8.0))
    optimizer.found_inf = torch.tensor(0.0)
    with pytest.raises(TypeError, match="grad_scale must be a float32 tensor"):
        optimizer.step()
