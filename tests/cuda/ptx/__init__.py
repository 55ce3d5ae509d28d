"""An interpreter of PTX: runs the kernels of a module on the CPU, with every access checked.

A block's threads are lanes of NumPy arrays. Global memory is this process's own, where a test has
registered it. What a GPU would not define is a ``Fault`` that names the place.
"""

from ptx.faults import Fault, UnknownInstruction
from ptx.launch import Launch, Statistics
from ptx.memory import Memory
from ptx.module import Coverage, Kernel, Module
from ptx.opcodes import OPCODES

__all__ = [
    "OPCODES",
    "Coverage",
    "Fault",
    "Kernel",
    "Launch",
    "Memory",
    "Module",
    "Statistics",
    "UnknownInstruction",
]
