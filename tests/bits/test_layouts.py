"""Memory layouts: any pairing is updated right, and no byte outside a view is written."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fusedopt
from fusedopt.checking.verify import threads
from helpers import Guarded, bits

SHAPE = (6, 5, 4, 7)

# (sizes, strides, memory) for one shape.
LAYOUTS = {
    "contiguous": ((140, 28, 7, 1), 840),
    "channels_last": ((140, 1, 35, 5), 840),
    "transposed": ((1, 6, 30, 120), 840),
    "column_slice": ((280, 56, 14, 2), 1680),
    "row_gaps": ((200, 40, 9, 1), 1200),
}


def make(layout, values, dtype):
    stride, memory = LAYOUTS[layout]
    guarded = Guarded(memory, dtype)
    view = guarded.view(SHAPE, stride)
    view.copy_(values)
    return guarded, view


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=2)), ids="-".join)
def test_every_pairing_of_parameter_and_gradient(layouts, dtype):
    torch.manual_seed(0)
    values, grads = torch.randn(SHAPE).to(dtype), torch.randn(3, *SHAPE).to(dtype)
    expected = torch.nn.Parameter(values.clone())
    expected_optimizer = fusedopt.Adam([expected], amsgrad=True, weight_decay=0.1)
    memory, view = make(layouts[0], values, dtype)
    param = torch.nn.Parameter(view)
    optimizer = fusedopt.Adam([param], amsgrad=True, weight_decay=0.1)
    for grad in grads:
        expected.grad = grad.clone()
        expected_optimizer.step()
        grad_memory, param.grad = make(layouts[1], grad, dtype)
        before = param.grad.clone()
        optimizer.step()
        assert torch.equal(param.grad, before)
        grad_memory.assert_untouched()
    assert np.array_equal(bits(param), bits(expected))
    for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        ours, theirs = optimizer.state[param][name], expected_optimizer.state[expected][name]
        assert np.array_equal(bits(ours), bits(theirs))
    memory.assert_untouched()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_of_another_layout(layout):
    torch.manual_seed(0)
    values = torch.randn(SHAPE)
    expected, param = torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.clone())
    optimizers = [fusedopt.SGD([p], lr=0.1, momentum=0.9) for p in (expected, param)]
    for p, optimizer in zip((expected, param), optimizers, strict=True):
        p.grad = torch.ones(SHAPE)
        optimizer.step()
    memory, buffer = make(layout, optimizers[1].state[param]["momentum_buffer"], torch.float32)
    optimizers[1].state[param]["momentum_buffer"] = buffer
    for optimizer in optimizers:
        optimizer.step()
    assert np.array_equal(bits(param), bits(expected))
    assert np.array_equal(bits(buffer), bits(optimizers[0].state[expected]["momentum_buffer"]))
    memory.assert_untouched()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_large_strided_tensor_cut_among_threads(count):
    torch.manual_seed(0)
    values, grad = torch.randn(331, 307), torch.randn(331, 307)
    memory = Guarded(331 * 307 * 3, torch.float32)
    view = memory.view((331, 307), (3, 331 * 3))
    view.copy_(values)
    param, expected = torch.nn.Parameter(view), torch.nn.Parameter(values.clone())
    param.grad, expected.grad = grad.t().contiguous().t(), grad.clone()
    with threads(count):
        fusedopt.Adam([param]).step()
    fusedopt.Adam([expected]).step()
    assert np.array_equal(bits(param), bits(expected))
    memory.assert_untouched()


@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(1).expand(8, 9),
        torch.arange(9.0).expand(8, 9),
        torch.arange(8.0).view(8, 1).expand(8, 9),
        torch._neg_view(torch.randn(8, 9)),
        torch.randn(8, 9, dtype=torch.cfloat).conj().imag,
        torch.randn(9, 8).t(),
        torch.randn(16, 18)[::2, ::2],
    ],
    ids=["scalar", "row", "column", "negated", "imaginary", "transposed", "sliced"],
)
def test_gradients_of_every_kind(grad):
    param = torch.nn.Parameter(torch.randn(8, 9))
    expected = torch.nn.Parameter(param.detach().clone())
    param.grad, expected.grad = grad, grad.clone().contiguous().resolve_neg()
    for p in (param, expected):
        fusedopt.Adam([p]).step()
    assert np.array_equal(bits(param), bits(expected))


def test_views_of_one_flat_buffer():
    flat = torch.randn(1000)
    expected = flat.clone()
    bounds = [0, 1, 17, 300, 301, 999, 1000]
    params = [torch.nn.Parameter(flat[a:b]) for a, b in itertools.pairwise(bounds)]
    for param in params:
        param.grad = torch.ones_like(param)
    fusedopt.SGD(params, lr=0.25).step()
    assert torch.equal(flat, expected - 0.25)


def test_scalar_and_empty_parameters():
    scalar, empty = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.zeros(0, 3))
    scalar.grad, empty.grad = torch.tensor(4.0), torch.zeros(0, 3)
    optimizer = fusedopt.Adam([empty, scalar], lr=0.5)
    optimizer.step()
    assert scalar.item() == pytest.approx(1.5)
    assert optimizer.state[empty]["step"].item() == 1
    assert optimizer.state[empty]["exp_avg"].shape == (0, 3)


def test_overlapping_parameter_is_refused():
    base = torch.randn(4)
    for overlapping in (
        base[:1].expand(8),
        base.as_strided((3, 2), (1, 1)),
        base.as_strided((2, 2), (0, 1)),
    ):
        param = torch.nn.Parameter(overlapping)
        param.grad = torch.ones(overlapping.shape)
        before = base.clone()
        with pytest.raises(RuntimeError, match=r"group 0, parameter 0.*share memory"):
            fusedopt.SGD([param], lr=1.0).step()
        assert torch.equal(base, before)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_parameters_that_share_memory_are_stepped_in_order(count):
    """As torch's loop does: each sees what those before it in the list have written."""
    results = []
    for optimizer_class in (fusedopt.SGD, torch.optim.SGD):
        torch.manual_seed(0)
        buffer = torch.randn(300_000)
        params = [
            torch.nn.Parameter(buffer[50_000:250_000]),
            torch.nn.Parameter(buffer),
            torch.nn.Parameter(buffer.view(1000, 300)[:, 7]),
            torch.nn.Parameter(torch.randn(5)),
            torch.nn.Parameter(buffer),
        ]
        for param in params:
            param.grad = torch.randn(param.shape)
        with threads(count):
            # Powers of two, so that every product is exact and torch's bits are ours.
            optimizer_class(params, lr=0.5, weight_decay=0.25).step()
        results.append(buffer)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_the_same_parameter_twice_is_refused():
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = fusedopt.SGD([torch.nn.Parameter(torch.ones(1)), param, param], lr=1.0)
    with pytest.raises(ValueError, match="group 0, parameter 2: is also parameter 1 of group 0"):
        optimizer.step()
    assert torch.equal(param, torch.ones(3))


def test_swapped_data_is_read_afresh():
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    optimizer = fusedopt.SGD([param], lr=0.5)
    optimizer.step()
    param.data = torch.full((5,), 7.0)
    optimizer.step()
    assert torch.equal(param, torch.full((5,), 6.5))
