"""The CUDA engine for tensors on the CPU, with the kernels as compiled.

The engine runs on the stand-in for CUDA's runtime. What it launches is executed from the PTX that
the built module carries: with the parameter that it passes, and with every access checked against
what the updates of the launch may touch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from built_code import SPEC, ptx_texts
from emulation import emulated
from ptx import Kernel, Launch, Memory, Module
from stand_in import DEFAULT_STREAM, native, options_left, steps_on

if SPEC is None and shutil.which("nvcc") is None:
    pytest.skip("built without CUDA, for want of nvcc", allow_module_level=True)


@functools.cache
def kernels_of(architecture: str) -> dict[str, Kernel]:
    """All kernels, by their names as compiled."""
    if architecture not in ptx_texts():
        pytest.skip(f"this nvcc does not know {architecture}")
    units = [Module(text) for text in ptx_texts()[architecture]]
    return {name: kernel for unit in units for name, kernel in unit.kernels.items()}


# As KernelKind numbers them: of small and large tables, and for any formats, in float or not.
KERNELS = ("small", "large", "any", "double")
# The kernels of the measuring pass, which take a table of either size.
SQUARES = "squares"
TABLE_SIZES = {"small": emulated.small_table, "large": emulated.large_table}


@functools.cache
def kernel_of(architecture: str, rule: str, kind: str) -> Kernel:
    """The kernel of a rule, or of SQUARES, for a kind of launch, one of KERNELS."""
    if rule == SQUARES:
        pattern = re.compile(rf"square_kernelILj{TABLE_SIZES[kind]}E")
    else:
        number = KERNELS.index(kind)
        pattern = re.compile(rf"NS_\d+{rule}ELNS0_10KernelKindE{number}E", re.IGNORECASE)
    kernels = kernels_of(architecture)
    (name,) = filter(pattern.search, kernels)
    return kernels[name]


# By kernel: the types of the scalars that it has derived, for elements that it then updated.
derived_in: defaultdict[Kernel, set[str]] = defaultdict(set)


def byte_mask(dims: list[tuple[int, int]], element_size: int) -> np.ndarray:
    """Which bytes, from the first element on, belong to the elements of a walk."""
    offsets = np.zeros(1, np.int64)
    for size, stride in dims:
        offsets = np.add.outer(offsets, stride * np.arange(size, dtype=np.int64)).reshape(-1)
    if offsets.size == 0:
        return np.zeros(0, bool)
    elements = np.zeros(int(offsets.max()) + 1, bool)
    elements[offsets] = True
    return np.repeat(elements, element_size)


def register_elements(memory: Memory, elements: dict) -> None:
    """An operand or a number: it may be touched at its elements and nowhere between."""
    mask = byte_mask(elements["dims"], elements["element_size"])
    memory.register(
        elements["address"],
        mask.size,
        host=elements["host"],
        name=elements["name"],
        readable=mask if elements["readable"] else False,
        writable=mask if elements["writable"] else False,
    )


def memory_of(launch: dict) -> Memory:
    """What a launch may touch: operands, tables, and the numbers that it reads or counts."""
    memory = Memory()
    for elements in launch["elements"]:
        register_elements(memory, elements)
    return memory


def is_skipped(launch: dict) -> bool:
    """Whether a gradient scaler has found an infinity, or it was decided ahead of the launch."""
    found = [e["host"] for e in launch["elements"] if e["name"] == "found_inf"]
    decided = [e for e in launch["elements"] if e["name"] == "the decision" and e["readable"]]
    return any(ctypes.c_float.from_address(address).value != 0 for address in found) or any(
        ctypes.c_double.from_address(e["host"] + 2 * e["element_size"]).value != 0 for e in decided
    )


class Interpreter:
    """Executes launches of the stand-in, their blocks in an order that a seed chooses."""

    def __init__(self, architecture: str, seed: int):
        self.architecture = architecture
        self.random = np.random.default_rng(seed)

    def __call__(self, launch: dict) -> None:
        """What it raises, the stand-in keeps as a violation."""
        kernel = kernel_of(self.architecture, launch["rule"], launch["kind"])
        memory = memory_of(launch)
        order = self.random.permutation(launch["blocks"])
        seed = int(self.random.integers(1 << 32))
        Launch(
            kernel,
            launch["parameter"],
            launch["blocks"],
            launch["threads"],
            memory,
            order,
            seed=seed,
        ).run()
        if is_skipped(launch):
            return
        derived_in[kernel] |= launch["derives_in"]
        written = {elements["name"] for elements in launch["elements"] if elements["writable"]}
        for name in written - {"the arrivals", "the sums"}:
            if left := memory.unwritten(name):
                raise AssertionError(f"{kernel.name} left out {left} bytes of {name}")


@contextlib.contextmanager
def compiled_cuda(architecture: str, seed: int = 0, groups: Iterable[dict] = ()) -> Iterator[None]:
    """Steps tensors on the CPU with the CUDA engine and the kernels' PTX.

    For the parameter groups that are given the kernels read the options; see `options_left`.
    """
    kernels_of(architecture)
    native.take_violations()
    native.schedule("at once", 0)
    native.set_executor(Interpreter(architecture, seed))
    try:
        with steps_on(native.get_device(), DEFAULT_STREAM), options_left(groups):
            yield
    finally:
        native.set_executor(None)
        native.schedule("latest", 0)
        # Ahead of what follows from them: wrong bits, say.
        if violations := native.take_violations():
            raise AssertionError(violations[0])
