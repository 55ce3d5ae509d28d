"""Kernels written in PTX, and arrays for them to run on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ptx import Fault, Kernel, Launch, Memory, Module, Statistics

HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"
DECLARATIONS = """
  .reg .pred %p<9>; .reg .b16 %rs<19>; .reg .b32 %r<19>; .reg .b64 %rd<19>; .reg .b32 %f<9>;
  .reg .b64 %fd<9>;
"""


def kernel_of(body: str, parameters: str = ".param .u64 in, .param .u64 out") -> Kernel:
    text = f"{HEAD}.visible .entry kernel({parameters})\n{{{DECLARATIONS}{body}\n  ret;\n}}\n"
    return Module(text).kernels["kernel"]


def array(values, dtype=np.uint64) -> np.ndarray:
    """At a multiple of 16 bytes, as what comes from cudaMalloc is."""
    values = np.asarray(values, dtype)
    room = np.zeros(values.nbytes + 16, np.uint8)
    begin = -room.ctypes.data % 16
    result = room[begin : begin + values.nbytes].view(dtype)
    result[:] = values
    return result


def zeros(count: int, dtype=np.uint64) -> np.ndarray:
    return array(np.zeros(count), dtype)


def launch(
    kernel: Kernel,
    *arguments: np.ndarray | int | bytes,
    blocks: int = 1,
    threads: int = 1,
    memory: Memory | None = None,
    **options,
) -> Statistics:
    """Runs it on arrays, which are registered by their parameters' names, and other values."""
    if memory is None:
        memory = Memory()
        for name, argument in zip(kernel.parameters, arguments, strict=True):
            if isinstance(argument, np.ndarray):
                memory.register(argument.ctypes.data, argument.nbytes, name=name)
    parameter = bytearray(kernel.parameter_size)
    for variable, argument in zip(kernel.parameters.values(), arguments, strict=True):
        if isinstance(argument, np.ndarray):
            argument = argument.ctypes.data
        if isinstance(argument, int):
            argument = argument.to_bytes(variable.size, "little")
        parameter[variable.offset : variable.offset + variable.size] = argument
    return Launch(kernel, bytes(parameter), blocks, threads, memory, **options).run()


def fault_of(kernel, *arguments, **options) -> Fault:
    with pytest.raises(Fault) as caught:
        launch(kernel, *arguments, **options)
    return caught.value


def found(fault: Fault, *patterns: str) -> bool:
    return all(re.search(pattern, str(fault)) for pattern in patterns)
