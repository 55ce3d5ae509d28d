"""What a bug report needs: ``fusedopt info``."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import fusedopt
from fusedopt import _native
from fusedopt.environment import USES_HUGE_PAGES, USES_TORCH_LIBRARY

if TYPE_CHECKING:
    from types import ModuleType


def collect() -> dict[str, str]:
    """Versions, instruction sets, threads and devices of this machine and installation."""
    return {
        "fusedopt": fusedopt.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "compiler": _native.compiler,
        "platform": platform.platform(),
        "processor": processor_name(),
        "instruction set": _native.selected_isa(),
        "available": ", ".join(_native.available_isas()),
        "threads": str(torch.get_num_threads()),
        "torch's library tells": answers_of_torch(),
        "huge pages": huge_pages(),
        "CUDA in fusedopt": cuda_of_fusedopt(),
        "CUDA in torch": f"{torch.version.cuda or 'not built'}, "
        + ("usable" if torch.cuda.is_available() else "not usable"),
    }


def answers_of_torch() -> str:
    """What torch's library is asked in a step."""
    if not USES_TORCH_LIBRARY:
        return "switched off by FUSEDOPT_TORCH_LIBRARY=0"
    return ", ".join(_native.torch_answers()) or "nothing"


def huge_pages() -> str:
    """Whether large new states are to be on huge pages, and what the system says to that."""
    asked = "asked for" if USES_HUGE_PAGES else "not asked for (FUSEDOPT_HUGE_PAGES=1 does)"
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled") as enabled:
            return f"{asked}; the system: {enabled.read().strip()}"
    except OSError:
        return f"{asked}; the system has none"


def cuda_of_fusedopt() -> str:
    """What the CUDA engine was built with and for, and whether it can be used here."""
    try:
        import fusedopt._cuda as _cuda  # "from" would raise ImportError
    except ModuleNotFoundError:
        return "not built"
    return f"{_cuda.toolkit}, {_cuda.architectures}; {_gpus(_cuda)}"


def _gpus(cuda: ModuleType) -> str:
    """How many GPUs the engine finds, or why it finds none."""
    try:
        return f"{cuda.device_count()} GPUs here"
    except RuntimeError as error:
        if "cudaErrorNoDevice" in str(error):
            return "no GPU here"
        if "cudaErrorInsufficientDriver" in str(error):
            if Path("/proc/driver/nvidia/version").exists():
                return f"the driver here is older than CUDA {cuda.toolkit} needs"
            return "no NVIDIA driver here"
        return str(error)


def processor_name() -> str:
    """The processor's name as Linux gives it, or the machine type elsewhere."""
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            names = [line.split(":", 1)[1].strip() for line in cpuinfo if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def print_info() -> None:
    """Prints :func:`collect` as a table."""
    table = Table(show_header=False, box=None)
    for name, value in collect().items():
        table.add_row(name, escape(value))
    Console().print(table)
