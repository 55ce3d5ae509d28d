"""The optimizers in plain NumPy: what every kernel of this package is compared with, bit for bit.

Each function performs one step of one rule:

    param, state = adam(param, grad, state, lr=1e-3)

``param`` and ``grad`` are arrays of one float dtype (float32, float64, longdouble) and any shape.
``state`` is a dict as in a torch checkpoint, ``{}`` before the first step; nothing is changed in
place. Scalars are derived in Python's floats, which are IEEE doubles, and rounded once to the
arrays' dtype. The order of operations is part of the definition: only operations that IEEE 754
rounds correctly are used, each in the dtype of the arrays, so any machine that does the same
operations in the same order gets the same bits.

:func:`fusedopt.reference.in_16_bits` wraps a rule for parameters in bfloat16 or float16,
:func:`fusedopt.reference.in_formats` one for parameter, gradient and states in different dtypes,
and :func:`fusedopt.reference.stored` one for everything else that the options of the classes store:
states in 16 and 8 bits, stochastic rounding, masters. What follows a step is
:func:`fusedopt.reference.with_l1`, inside of those, and :func:`fusedopt.reference.with_average`,
around them.

The package needs nothing but NumPy. Default values are those of the optimizer classes. A rule is
the function that its file is named after, beside the header of that name in ``csrc/rules``.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from fusedopt.reference.codes import code_values as code_values
from fusedopt.reference.codes import decode_blocks as decode_blocks
from fusedopt.reference.codes import encode_blocks as encode_blocks
from fusedopt.reference.epilogue import shrink as shrink
from fusedopt.reference.epilogue import with_average as with_average
from fusedopt.reference.epilogue import with_l1 as with_l1
from fusedopt.reference.formats import in_16_bits as in_16_bits
from fusedopt.reference.formats import in_formats as in_formats
from fusedopt.reference.formats import join_master as join_master
from fusedopt.reference.formats import round_bfloat16 as round_bfloat16
from fusedopt.reference.formats import (
    round_bfloat16_stochastically as round_bfloat16_stochastically,
)
from fusedopt.reference.formats import round_float16 as round_float16
from fusedopt.reference.formats import round_float32 as round_float32
from fusedopt.reference.formats import split_master as split_master
from fusedopt.reference.random import philox as philox
from fusedopt.reference.random import random_bits as random_bits
from fusedopt.reference.reduction import clip as clip
from fusedopt.reference.reduction import clip_factor as clip_factor
from fusedopt.reference.reduction import total_norm as total_norm
from fusedopt.reference.shared import Array as Array
from fusedopt.reference.shared import Rule as Rule
from fusedopt.reference.shared import State as State
from fusedopt.reference.shared import lerp as lerp
from fusedopt.reference.shared import power as power
from fusedopt.reference.shared import unscale as unscale
from fusedopt.reference.storage import Storage as Storage
from fusedopt.reference.storage import stored as stored

if TYPE_CHECKING:
    from types import ModuleType

    def __getattr__(name: str) -> Rule: ...


def _modules_of_rules() -> dict[str, ModuleType]:
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "STATES")}


# Of each rule its states, and whether their numbers may be negative.
STATES: dict[str, dict[str, bool]] = {}
for _name, _module in _modules_of_rules().items():
    STATES[_name] = _module.STATES
    globals()[_name] = vars(_module)[_name]
