"""torch.amp.GradScaler: the step divides by the scale, and a skipped step changes nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import forked
import fusedopt
from fusedopt import reference
from fusedopt.checking.cases import CASES, DTYPES
from fusedopt.checking.rows import ROWS
from fusedopt.checking.verify import count_mismatches, gradients, reference_rule, threads, to_array
from helpers import Guarded, bits, scaled_step, snapshot

DTYPE_IDS = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
SIZES = (0, 1, 7, 511, 513, 4099)


def rounded(array, dtype):
    """An array as a tensor of ``dtype`` holds it."""
    return to_array(torch.from_numpy(array).to(dtype))


@pytest.mark.parametrize("scale", [65536.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=DTYPE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference(case, dtype, scale):
    """The update takes the quotient, and the gradient becomes it, rounded as it is stored."""
    generator = np.random.default_rng(5)
    params = [torch.nn.Parameter(torch.randn(n).to(dtype)) for n in SIZES]
    optimizer = case.row.optimizer(params, **case.options)
    options = case.row.reference_options(optimizer.param_groups[0])
    rule = reference_rule(case, dtype)
    expected = [(to_array(param), {}) for param in params]
    for _ in range(3):
        for param in params:
            param.grad = gradients(param.numel(), dtype, generator)
        grads = [reference.unscale(to_array(param.grad), scale) for param in params]
        expected = [
            rule(param, grad, state, **options)
            for (param, state), grad in zip(expected, grads, strict=True)
        ]
        scaled_step(optimizer, scale)
        for param, grad, (value, state) in zip(params, grads, expected, strict=True):
            assert count_mismatches(to_array(param.grad), rounded(grad, dtype)) == 0
            assert count_mismatches(to_array(param), value) == 0
            for name in set(state) - {"step"}:
                assert count_mismatches(to_array(optimizer.state[param][name]), state[name]) == 0


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.torch_optimizer], ids=lambda row: row.name
)
def test_trajectory_of_torch(row):
    """Finite and infinite gradients through torch's own scaler, beside torch's own optimizer."""
    runs = []
    for cls in (row.optimizer, row.torch_optimizer):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(1000, dtype=torch.float64))
        optimizer = cls([param])
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        for step in range(12):
            optimizer.zero_grad()
            scaler.scale((param.sin() * (step + 1)).sum()).backward()
            if step in (0, 5, 6):
                param.grad[3] = float("inf")
            if step % 4 == 3:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append((param.detach(), param.grad, scaler.get_scale(), optimizer.state[param]))
    (ours, our_grad, our_scale, our_state), (theirs, their_grad, their_scale, their_state) = runs
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(our_grad, their_grad)
    assert our_scale == their_scale
    assert our_state.keys() == their_state.keys()
    if "step" in our_state:
        assert our_state["step"] == their_state["step"] == 9


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_who_unscales(row):
    """The step, unless ``fused=False`` leaves that to the scaler, as torch does."""
    for fused, supports in ((None, True), (True, True), (False, False)):
        optimizer = row.optimizer([torch.nn.Parameter(torch.ones(3))], fused=fused)
        assert optimizer._step_supports_amp_scaling is supports
        assert copy.deepcopy(optimizer)._step_supports_amp_scaling is supports


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("steps", [0, 2])
def test_skipped_step_changes_nothing(row, steps):
    """Not even in the first step, which creates no state then."""
    options = {"momentum": 0.9, "dampening": 0.3} if row.name == "SGD" else {}
    param = torch.nn.Parameter(torch.randn(100))
    optimizer = row.optimizer([param], **options)
    for _ in range(steps):
        param.grad = torch.randn(100)
        optimizer.step()
    param.grad = torch.full((100,), float("inf"))
    before = snapshot(optimizer)
    for found_inf in (1.0, 2.0, float("nan")):
        scaled_step(optimizer, 2.0, found_inf)
        assert snapshot(optimizer) == before
    assert param.grad.isinf().all()


def test_the_step_after_a_skipped_first_one_is_the_first():
    results = []
    for skipped in (0, 2):
        param = torch.nn.Parameter(torch.ones(9))
        optimizer = fusedopt.SGD([param], lr=0.1, momentum=0.9, dampening=0.5)
        for found_inf in [*[1.0] * skipped, 0.0, 0.0]:
            param.grad = torch.arange(9.0)
            scaled_step(optimizer, 4.0, found_inf)
        results.append(bits(param))
    assert np.array_equal(*results)


def test_every_layout(each_isa):
    """The gradient is unscaled where it lies, and nothing beside it is touched."""
    sizes, dtype = (37, 29), torch.bfloat16
    for strides in ((29, 1), (1, 37), (58, 2)):
        guarded = Guarded(sizes[0] * 60, dtype)
        grad = guarded.view(sizes, strides)
        values = torch.randn(sizes).to(dtype)
        grad.copy_(values)
        param = torch.nn.Parameter(torch.randn(sizes).to(dtype))
        twin = torch.nn.Parameter(param.detach().clone())
        param.grad, twin.grad = grad, values / 8
        scaled_step(fusedopt.Adam([param]), 8.0)
        fusedopt.Adam([twin]).step()
        assert np.array_equal(bits(param), bits(twin))
        assert np.array_equal(bits(grad), bits(values / 8))
        guarded.assert_untouched()


def test_threads_give_the_same_bits():
    results = []
    for count in (1, 2, 3):
        torch.manual_seed(0)
        param = torch.nn.Parameter(torch.randn(200_001))
        param.grad = torch.randn(200_001)
        with threads(count):
            scaled_step(fusedopt.AdamW([param]), 3.0)
        results.append((bits(param), bits(param.grad)))
    for result in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_no_scale_after_unscale():
    """GradScaler gives None for a scale that it has divided by itself."""
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.full((5,), 2.0)
    scaled_step(fusedopt.SGD([param], lr=1.0), None)
    assert torch.equal(param.grad, torch.full((5,), 2.0))
    assert torch.equal(param.detach(), torch.full((5,), -1.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("grad_scale", 2.0),
        ("grad_scale", torch.tensor(2)),
        ("grad_scale", torch.ones(2)),
        ("grad_scale", torch.tensor(2.0).double()),
        ("found_inf", torch.tensor(False)),
        ("found_inf", torch.tensor(0.0).double()),
        ("found_inf", "no"),
    ],
)
def test_wrong_tensors_are_refused(name, value):
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(5)
    optimizer = fusedopt.Adam([param])
    before = snapshot(optimizer)
    setattr(optimizer, name, value)
    with pytest.raises(TypeError, match=f"{name} must be a float32 tensor of one element"):
        optimizer.step()
    assert snapshot(optimizer) == before


ELSEWHERE = """
import ctypes
import torch, fusedopt

pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
torch.cuda._lazy_init = lambda: None

def on_a_gpu(value):
    # Memory of the host that DLPack says is a GPU's: the device stands behind the address.
    capsule = torch.utils.dlpack.to_dlpack(torch.tensor(value))
    ctypes.c_int32.from_address(pointer_of(capsule, b"dltensor") + 8).value = 2
    return torch.utils.dlpack.from_dlpack(capsule)

param = torch.nn.Parameter(torch.ones(5))
param.grad = torch.ones(5)
optimizer = fusedopt.SGD([param], lr=1.0)
number, copy = on_a_gpu(2.0), None
assert number.device.type == "cuda"
torch.Tensor.to = lambda tensor, *args, **options: copy

def step(name):
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    setattr(optimizer, name, number)
    optimizer.step()

for name in ("grad_scale", "found_inf"):
    for copy in (torch.tensor(2.0).double(), torch.ones(2), None, number):
        try:
            step(name)
        except TypeError as error:
            assert str(error).startswith(name + " is on another device than the param"), error
        else:
            raise AssertionError("not refused: " + name)
        assert param.tolist() == param.grad.tolist() == [1.0] * 5
copy = torch.tensor(2.0)
step("grad_scale")
assert param.tolist() == param.grad.tolist() == [0.5] * 5
"""


def test_a_number_elsewhere_whose_copy_is_none_is_refused():
    """Where somebody replaces torch's ``to``: a double, two numbers, none, a copy still there."""
    forked.run_python(ELSEWHERE)


def test_gradient_that_cannot_be_divided_in_place_is_refused():
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.ones(1).expand(5)
    optimizer = fusedopt.Adam([param])
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match=r"group 0, parameter 0: .*unscaled in place"):
        scaled_step(optimizer, 2.0)
    assert snapshot(optimizer) == before
    scaled_step(optimizer, None)


def raising(*_):
    raise KeyboardInterrupt


def failing_hook(kind):
    def prepare(optimizer):
        getattr(optimizer, f"register_step_{kind}_hook")(raising)
        return optimizer.step

    return prepare


def step_at_iterate(optimizer):
    def step():
        with optimizer.at_iterate():
            optimizer.step()

    return step


def failing_option(optimizer):
    optimizer.param_groups[0]["lr"] = "fast"
    return optimizer.step


def failing_scheduled_option(optimizer):
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return failing_option(optimizer)


class Failing(fusedopt.SGD):
    """A step of a user's own that ends before, or after, it has called ours."""

    where = "before"

    def step(self, closure=None):
        if self.where == "before":
            raise KeyboardInterrupt
        super().step(closure)
        raise KeyboardInterrupt


WAYS_TO_FAIL = {
    "closure": (fusedopt.SGD, lambda optimizer: lambda: optimizer.step(raising)),
    "pre hook": (fusedopt.SGD, failing_hook("pre")),
    "post hook": (fusedopt.Adam, failing_hook("post")),
    "refusal": (fusedopt.SGD, failing_option),
    "refusal under a scheduler": (fusedopt.Nesterov, failing_scheduled_option),
    "before super": (Failing, lambda optimizer: optimizer.step),
    "after super": (
        Failing, lambda optimizer: setattr(optimizer, "where", "after") or optimizer.step),
    "at the iterate": (fusedopt.Nesterov, step_at_iterate),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS_TO_FAIL)
def test_a_step_that_raises_leaves_no_scale_to_the_next(way):
    cls, prepare = WAYS_TO_FAIL[way]
    param = torch.nn.Parameter(torch.ones(5))
    param.grad = torch.full((5,), 8.0)
    optimizer = cls([param], lr=1.0)
    fail = prepare(optimizer)
    for scale, found_inf in ((8.0, 0.0), (8.0, 1.0), (None, 1.0)):
        optimizer.grad_scale = None if scale is None else torch.tensor(scale)
        optimizer.found_inf = torch.tensor(found_inf)
        with pytest.raises((KeyboardInterrupt, TypeError, RuntimeError)):
            fail()
        assert not {"grad_scale", "found_inf"} & vars(optimizer).keys()


@pytest.mark.parametrize("catches", [False, True])
def test_a_scaler_goes_on_after_a_step_that_raised(catches):
    """Also where a step of a user's own catches what ours has raised."""

    class Catching(fusedopt.SGD):
        def step(self, closure=None):
            try:
                return super().step(closure)
            except TypeError:
                return None

    param = torch.nn.Parameter(torch.zeros(3))
    optimizer = (Catching if catches else fusedopt.SGD)([param], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for attempt, lr in enumerate(("fast", 1.0)):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.zero_grad()
        scaler.scale((param * torch.tensor([1.0, 2.0, 3.0])).sum()).backward()
        if attempt == 0 and not catches:
            with pytest.raises(TypeError, match="invalid lr"):
                scaler.step(optimizer)
        else:
            scaler.step(optimizer)
        scaler.update()
    assert torch.equal(param.detach(), torch.tensor([-1.0, -2.0, -3.0]))


def test_unscale_in_the_reference():
    grad = np.array([3.0, -np.inf, 0.0], dtype=np.float32)
    assert np.array_equal(reference.unscale(grad, 1000.0), grad / np.float32(1000))
    assert reference.unscale(grad, 1000.0).dtype == np.float32
