"""get_total_norm and clip_grad_norm_ in place of torch's."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import fusedopt
from fusedopt import reference
from fusedopt.checking.cases import DTYPES
from fusedopt.checking.verify import to_array
from helpers import bits, content, parameter

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
FUNCTIONS = ["get_total_norm", "clip_grad_norm_"]


def params_and_grads(dtype=torch.float32, sizes=(5, 3, 1000)):
    torch.manual_seed(0)
    params = [parameter(torch.randn(size).to(dtype)) for size in sizes]
    for param in params:
        param.grad = torch.randn(param.shape).to(dtype)
    return params


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_is_torchs(name):
    ours = inspect.signature(getattr(fusedopt, name)).parameters
    theirs = inspect.signature(getattr(torch.nn.utils, name)).parameters
    assert [*ours] == [*theirs]
    for key in ours:
        assert (ours[key].default, ours[key].kind) == (theirs[key].default, theirs[key].kind)


@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
def test_bits_of_the_reference(dtype):
    params = params_and_grads(dtype)
    norm = reference.total_norm(to_array(param.grad) for param in params)
    expected = torch.tensor(norm, dtype=torch.promote_types(dtype, torch.float32))
    assert content(fusedopt.get_total_norm([p.grad for p in params])) == content(expected)
    factor = reference.clip_factor(1.0, norm)
    clipped = [reference.clip(to_array(param.grad), factor) for param in params]
    assert content(fusedopt.clip_grad_norm_(params, 1.0)) == content(expected)
    for param, array in zip(params, clipped, strict=True):
        assert np.array_equal(bits(param.grad), bits(torch.from_numpy(array).to(dtype)))


def test_gradients_below_the_maximum_are_left_alone():
    params = params_and_grads()
    before = [bits(param.grad).copy() for param in params]
    fusedopt.clip_grad_norm_(params, 1e6)
    fusedopt.clip_grad_norm_(params, math.inf)
    for param, expected in zip(params, before, strict=True):
        assert np.array_equal(bits(param.grad), expected)
        assert param.grad._version == 0


@pytest.mark.parametrize("norm_type", [1.0, 2, 2.0, 3.0, "inf", math.inf])
def test_norms_of_other_types_are_torchs(norm_type):
    ours, theirs = params_and_grads(), params_and_grads()
    norms = [
        clip(params, 1.0, norm_type=norm_type)
        for clip, params in (
            (fusedopt.clip_grad_norm_, ours), (torch.nn.utils.clip_grad_norm_, theirs))
    ]  # fmt: skip
    torch.testing.assert_close(*norms)
    for param, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(param.grad, other.grad)


@pytest.mark.parametrize("special", [math.inf, math.nan])
def test_errors_and_what_is_not_finite(special):
    for function in (fusedopt.clip_grad_norm_, torch.nn.utils.clip_grad_norm_):
        params = params_and_grads()
        params[1].grad[0] = special
        before = [content(param.grad) for param in params]
        with pytest.raises(RuntimeError, match=r"norm of order 2\.0 for gradients"):
            function(params, 1.0, error_if_nonfinite=True)
        assert [content(param.grad) for param in params] == before
        norm = function(params, 1.0)
        assert content(norm) == content(torch.tensor(special))
        expected = 0.0 if special == math.inf else math.nan
        torch.testing.assert_close(params[0].grad, torch.full((5,), expected), equal_nan=True,
                                   rtol=0, atol=0)  # fmt: skip


def test_what_can_be_given():
    (param,) = params_and_grads(sizes=(4,))
    assert fusedopt.get_total_norm(param.grad) == fusedopt.get_total_norm(iter([param.grad]))
    assert fusedopt.get_total_norm([]) == torch.tensor(0.0)
    assert fusedopt.clip_grad_norm_([torch.nn.Parameter(torch.ones(2))], 1.0) == torch.tensor(0.0)
    assert fusedopt.clip_grad_norm_(param, 1.0) > 1.0
    assert fusedopt.get_total_norm([param.grad], foreach=True) <= 1.0
    negated = torch._neg_view(param.grad)
    assert fusedopt.get_total_norm([negated]) == fusedopt.get_total_norm([param.grad])
    assert fusedopt.get_total_norm([param]) > 0


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (torch.ones(3).to_sparse(), RuntimeError),
        (torch.ones(3, dtype=torch.complex64), RuntimeError),
        (torch.ones(3, dtype=torch.int32), RuntimeError),
        (torch.ones(3, device="meta"), (RuntimeError, NotImplementedError)),
        (3.0, (TypeError, RuntimeError)),
    ],
    ids=["sparse", "complex", "integers", "meta", "number"],
)
def test_what_is_refused(tensor, error):
    with pytest.raises(error, match=r"tensor 1"):
        fusedopt.get_total_norm([torch.ones(2), tensor])


def test_what_a_mode_records_is_torchs():
    """A norm that it did not see would be the constant that it was while recording."""

    def clipped(grad):
        param = torch.nn.Parameter(torch.zeros(3))
        param.grad = grad.clone()
        norm = fusedopt.clip_grad_norm_([param], 1.0)
        return param.grad, norm, fusedopt.get_total_norm([grad])

    recorded = make_fx(clipped)(torch.full((3,), 10.0))
    for found, expected in zip(
        recorded(torch.full((3,), 100.0)), clipped(torch.full((3,), 100.0)), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_an_error_is_raised_where_the_result_is_infinite():
    """The norm is no float32; the gradients are clipped by the double that it is."""
    param = parameter(torch.zeros(300))
    param.grad = torch.full((300,), 3e38)
    for error in (True, False):
        before = param.grad.clone()
        if error:
            with pytest.raises(RuntimeError, match="non-finite"):
                fusedopt.clip_grad_norm_([param], 1.0, error_if_nonfinite=True)
            assert torch.equal(param.grad, before)
        else:
            assert fusedopt.clip_grad_norm_([param], 1.0).isinf()
            torch.testing.assert_close(param.grad.norm(), torch.tensor(1.0))


def test_nothing_is_clipped_where_a_gradient_overlaps_itself():
    params = [parameter(torch.ones(3)), parameter(torch.ones(3, dtype=torch.bfloat16))]
    params[0].grad = torch.full((3,), 9.0)
    params[1].grad = torch.ones(1, dtype=torch.bfloat16).expand(3)
    with pytest.raises(RuntimeError, match="gradient 1: its elements share memory"):
        fusedopt.clip_grad_norm_(params, 1.0)
    assert (params[0].grad == 9).all()


def test_norms_are_on_the_cpu_whatever_the_default_device():
    (param,) = params_and_grads(sizes=(5,))
    optimizer = fusedopt.AdamW([param], max_grad_norm=1.0, skip_nonfinite=True)
    optimizer.step()
    with torch.device("meta"):
        results = [
            fusedopt.clip_grad_norm_([param], 1.0), fusedopt.get_total_norm([param.grad]),
            fusedopt.clip_grad_norm_([], 1.0), optimizer.grad_norm, optimizer.skipped,
        ]  # fmt: skip
    assert [result.device.type for result in results] == ["cpu"] * 5
