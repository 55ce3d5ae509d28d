"""Helpers that all suites share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import fusedopt
from fusedopt import _native
from fusedopt.checking.verify import parameter as parameter

ISAS = _native.available_isas()
# One name for each set of kernels: this differs from avx512 in how codes of 8 bits are decoded.
ISAS_OF_KERNELS = [isa for isa in ISAS if isa != "avx512vbmi"]


class Guarded:
    """Memory with guard values around and between, of which tensors are views."""

    VALUE = 123.0

    def __init__(self, numel: int, dtype: torch.dtype, margin: int = 67, device="cpu"):
        self.memory = torch.full((numel + 2 * margin,), self.VALUE, dtype=dtype, device=device)
        self.touchable = torch.zeros(self.memory.numel(), dtype=torch.bool, device=device)
        self.margin = margin

    def view(self, size, stride, offset=0):
        """A view with these sizes and strides, whose elements may be written."""
        self.touchable.as_strided(size, stride, self.margin + offset).fill_(True)
        return self.memory.as_strided(size, stride, self.margin + offset)

    def assert_untouched(self):
        """Everything outside the views still has the guard value."""
        assert ((self.memory == self.VALUE) | self.touchable).all()


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The elements of a tensor as integers, in the order of its indices."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = kinds[tensor.element_size()]
    return tensor.detach().cpu().contiguous().view(kind).numpy()


# The ways in which a copy of a matrix may lie in memory, beside one run.
MATRIX_LAYOUTS = {
    "transposed": lambda t: t.t().contiguous().t(),
    "column slice": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "every other row": lambda t: t.repeat_interleave(2, 0)[::2],
}


def run_native(source: str, folder: Path, *options: str, headers_only: bool = False) -> list[str]:
    """What a program of ``tests/native`` prints, built with ``csrc/core`` and nothing else.

    Options are the compiler's. Of the core it may need the headers only.
    """
    root = Path(__file__).parent.parent
    program = folder / Path(source).stem
    core = [] if headers_only else (root / "csrc" / "core").glob("*.cpp")
    sources = [root / "tests" / "native" / source, *core]
    flags = ["-std=c++20", "-Wall", "-Werror", f"-I{root / 'csrc'}", *options]
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(program)], check=True)
    return subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()


def run_python(code, timeout=120, **environment):
    """Runs code in another process, which has to end well."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(fusedopt.__file__).parents[1],  # the package that is tested
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def scaled_step(optimizer, scale=None, found_inf=0.0):
    """What GradScaler.step does with an optimizer that supports it."""
    optimizer.grad_scale = None if scale is None else torch.tensor(scale)
    optimizer.found_inf = torch.tensor(found_inf)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf


def snapshot(optimizer: torch.optim.Optimizer) -> dict:
    """Bits of every parameter, gradient and state, and the version of every parameter."""
    result = {}
    for g, group in enumerate(optimizer.param_groups):
        for i, param in enumerate(group.get("params", ())):
            entry = {"version": param._version, "state": param in optimizer.state}
            entry["param"], entry["grad"] = content(param), content(param.grad)
            states = optimizer.state.get(param, {})
            if isinstance(states, dict):
                entry.update({name: content(value) for name, value in states.items()})
            result[g, i] = entry
    return result


def content(value) -> object:
    """What is compared of a parameter, gradient or state: dtype and bytes, where it has memory."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    if value.layout != torch.strided or value.device.type == "meta":
        return str(value)
    plain = value.detach().cpu().resolve_neg().contiguous()
    return str(plain.dtype), plain.shape, plain.flatten().view(torch.uint8).numpy().tobytes()
