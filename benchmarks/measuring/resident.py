"""Memory of parameters and states, as a process has it, beside what their tensors add up to."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from typing import Any

from ..contestants.ways import WAYS, contestants
from ..workloads.tensors import WORKLOADS
from .costs import forget_peak, resident_bytes, run_python
from .describe import stored_bytes
from .measure import Conditions
from .progress import Bars
from .storage import Formats

# So large that what the interpreter takes meanwhile is less than a hundredth of a byte per element.
WORKLOAD = "one-64m"


def memory(conditions: Conditions, bars: Bars) -> list[dict[str, Any]]:
    """Bytes per parameter of each way, measured in a process of its own.

    Returns:
        A row for each way and who steps it: ``resident`` is parameters and what construction and
        two steps have added, ``peak`` the most that there was meanwhile, ``computed`` the bytes of
        parameters and states; all of them without gradients.
    """
    # The gradient's dtype changes nothing of what is kept.
    names = [name for name, way in WAYS.items() if way.param == way.grad]
    everyone = [*contestants(names, conditions.peers)]
    rows = []
    for done, (way, who) in enumerate(everyone, start=1):
        bars.start(f"memory: {way}, {who}")
        measured = json.loads(run_python("-m", __name__, way, who, WORKLOAD))
        rows.append({"workload": WORKLOAD, "way": way, "who": who, **measured})
        bars.advance(done, len(everyone))
    return rows


def measure(way: str, who: str, workload: str) -> dict[str, float]:
    """What a process has per parameter; to be called once in it."""
    factory = contestants([way], [who])[way, who]
    groups = Formats(WORKLOADS[workload]).groups(WAYS[way])
    factory([dict(group) for group in groups]).step()  # starts threads, and compiles
    gc.collect()
    _return_what_is_free()
    forget_peak()
    before = resident_bytes()
    optimizer = factory(groups)
    for _ in range(2):
        optimizer.step()
    gc.collect()
    params = sum(param.nbytes for group in groups for param in group["params"])
    in_bytes = {
        "parameter": params,
        "computed": stored_bytes(optimizer),
        "resident": params + resident_bytes() - before,
        "peak": params + resident_bytes(at_most=True) - before,
    }
    return {name: value / WORKLOADS[workload].elements for name, value in in_bytes.items()}


def _return_what_is_free() -> None:
    """Lets glibc give memory back that it keeps, which would be taken again unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
