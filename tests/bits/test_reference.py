"""The reference itself: plain NumPy, and the same mathematics as torch in double precision."""

from __future__ import annotations

import ast
import inspect
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusedopt import reference
from fusedopt.checking.cases import CASES
from fusedopt.checking.rows import ROWS


@pytest.mark.parametrize("case", [c for c in CASES if c.row.torch_optimizer], ids=str)
def test_same_mathematics_as_torch(case):
    generator = np.random.default_rng(0)
    array = generator.standard_normal((4, 5))
    param = torch.nn.Parameter(torch.from_numpy(array.copy()))
    optimizer = case.row.torch_optimizer([param], foreach=False, **case.options)
    options = case.row.reference_options(optimizer.param_groups[0])
    state = {}
    for _ in range(30):
        grad = generator.standard_normal((4, 5))
        param.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        array, state = case.row.reference(array, grad, state, **options)
    np.testing.assert_allclose(array, param.detach().numpy(), rtol=1e-9, atol=1e-12)
    for name, value in state.items():
        theirs = optimizer.state[param][name].numpy()
        np.testing.assert_allclose(value, theirs, rtol=1e-9, atol=1e-12)
    assert state.keys() == optimizer.state[param].keys()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble], ids=str)
def test_any_float_dtype_and_nothing_in_place(row, dtype):
    param, grad = np.ones(3, dtype), np.full(3, 0.5, dtype)
    new, state = row.reference(param, grad, {})
    again, _ = row.reference(new, grad, state)
    assert new.dtype == again.dtype == dtype
    assert all(v.dtype == dtype for v in state.values() if isinstance(v, np.ndarray))
    assert np.array_equal(param, np.ones(3, dtype))
    assert np.array_equal(grad, np.full(3, 0.5, dtype))
    assert (new != 1).all()


def test_defaults_are_those_of_the_classes():
    for row in ROWS:
        ours = inspect.signature(row.optimizer).parameters
        for name, parameter in inspect.signature(row.reference).parameters.items():
            if name in ours and row.name != "AdamW":
                assert parameter.default == ours[name].default, (row.name, name)


def test_imports_numpy_only():
    modules = set()
    for path in Path(reference.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    others = {name for name in modules if not name.startswith("fusedopt.reference.")}
    assert {name.split(".")[0] for name in others} <= sys.stdlib_module_names | {"numpy"}


def test_rules_lie_beside_their_headers():
    folder = Path(__file__).parents[2] / "csrc" / "rules"
    for row in ROWS:
        name = row.reference.__name__
        assert row.reference.__module__ == f"fusedopt.reference.{name}"
        assert row.reference is getattr(reference, name)
        assert (folder / f"{name}.h").exists()


def test_every_rule_cites_its_source():
    for row in ROWS:
        assert any(year in row.reference.__doc__ for year in ("19", "20"))


def test_power():
    for base in (0.0, 0.5, 0.9, 0.999, 1.0):
        for exponent in (0, 1, 2, 3, 10, 1000, 1 << 40):
            assert math.isclose(reference.power(base, exponent), base**exponent, rel_tol=1e-9)


def test_lerp_reaches_both_ends():
    a, b = np.array([1e10, -3.0]), np.array([1.0, 7.0])
    assert np.array_equal(reference.lerp(a, b, 0.0), a)
    assert np.array_equal(reference.lerp(a, b, 1.0), b)


def test_bfloat16_rounding_is_torchs():
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 1_000_000, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    expected = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    ours = reference.round_bfloat16(values)
    nan = np.isnan(values)
    assert np.array_equal(ours[~nan].view(np.uint32), expected[~nan].view(np.uint32))
    assert np.isnan(ours[nan]).all()
