"""Optimizer steps for PyTorch in one native call, with the same bits on every machine.

Of NaN, which elements are one is the same, and in 16 bits also which NaN it is; in float32 and
float64 that is the processor's choice.

The classes replace those of ``torch.optim`` by name. Importing the package imports torch first, so
that both share one OpenMP runtime, and selects the fastest instruction set that the CPU has, or the
one that the environment variable ``FUSEDOPT_ISA`` names, in capitals or not; empty it names none.
``FUSEDOPT_TORCH_LIBRARY=0`` has tensors read through torch's exchange table and Python alone:
slower, and with the same results. ``FUSEDOPT_HUGE_PAGES=1`` asks the system for huge pages under
large new states.
"""

import os
import pkgutil
from importlib.metadata import version as _version

import torch

# In the root of a checkout this file is found before the installed package with the extension.
__path__ = pkgutil.extend_path(__path__, __name__)

from fusedopt import _native
from fusedopt.adadelta import Adadelta
from fusedopt.adagrad import Adagrad
from fusedopt.adam import Adam, AdamW
from fusedopt.convert import from_torch
from fusedopt.environment import USES_HUGE_PAGES, USES_TORCH_LIBRARY
from fusedopt.momentum import Momentum, Nesterov
from fusedopt.optimizer import FusedOptimizer, local_tensor
from fusedopt.rmsprop import RMSprop
from fusedopt.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "FusedOptimizer",
    "Momentum",
    "Nesterov",
    "RMSprop",
    "from_torch",
]

__version__ = _version("fusedopt")

with torch.inference_mode(False):
    _native.attach(torch, local_tensor, USES_TORCH_LIBRARY)
_native.use_huge_pages(USES_HUGE_PAGES)
if _isa := os.environ.get("FUSEDOPT_ISA", "").strip().lower():
    try:
        _native.select_isa(_isa)
    except ValueError as error:
        raise ValueError(f"FUSEDOPT_ISA: {error}") from None
