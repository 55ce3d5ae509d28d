"""Optimizer steps for PyTorch in one native call, with the bits of a NumPy reference.

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
import sys
from importlib.metadata import version as _version
from typing import TYPE_CHECKING

import torch

# In the root of a checkout this file is found before the installed package with the extension.
__path__ = pkgutil.extend_path(__path__, __name__)

from fusedopt import _native
from fusedopt.backward import step_in_backward as step_in_backward
from fusedopt.checking.rows import ROWS as _ROWS
from fusedopt.convert import convert_states as convert_states
from fusedopt.convert import from_bitsandbytes as from_bitsandbytes
from fusedopt.convert import from_torch as from_torch
from fusedopt.convert import from_torchao as from_torchao
from fusedopt.convert import to_float32_state as to_float32_state
from fusedopt.environment import USES_HUGE_PAGES, USES_TORCH_LIBRARY
from fusedopt.norms import clip_grad_norm_ as clip_grad_norm_
from fusedopt.norms import get_total_norm as get_total_norm
from fusedopt.optimizers.base import FusedOptimizer as FusedOptimizer
from fusedopt.optimizers.local_tensors import local_tensor as local_tensor
from fusedopt.optimizers.shards import part_of as part_of

if TYPE_CHECKING:  # Type checkers run nothing: they see the classes where their rows are.
    from fusedopt.checking.rows import *  # noqa: F403
else:
    _public = (
        FusedOptimizer,
        clip_grad_norm_,
        convert_states,
        from_bitsandbytes,
        from_torch,
        from_torchao,
        get_total_norm,
        step_in_backward,
        to_float32_state,
        *(row.optimizer for row in _ROWS),
    )
    globals().update({public.__name__: public for public in _public})
    __all__ = sorted(public.__name__ for public in _public)

__version__ = _version("fusedopt")

for _row in _ROWS:
    # Messages and pickles name the package, wherever the file of a class lies. Earlier pickles name
    # the files, which were in the package itself.
    _row.optimizer.__module__ = __name__
    sys.modules[f"{__name__}.{_row.rule}"] = sys.modules[__name__]
FusedOptimizer.__module__ = __name__

with torch.inference_mode(False):
    _native.attach(torch, local_tensor, part_of, USES_TORCH_LIBRARY)
_native.use_huge_pages(USES_HUGE_PAGES)
if _isa := os.environ.get("FUSEDOPT_ISA", "").strip().lower():
    try:
        _native.select_isa(_isa)
    except ValueError as error:
        raise ValueError(f"FUSEDOPT_ISA: {error}") from None
