"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy
import torch

import fusedopt
from fusedopt import _native
from fusedopt.info import processor_name

# Variables that change how memory is allocated and how threads wait.
_PREFIXES = ("FUSEDOPT_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_")


def describe() -> dict[str, Any]:
    """The machine, the versions and the instruction set; memory in bytes, the date in UTC."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "platform": f"{platform.system()} {platform.machine()}",
        },
        "versions": {
            "fusedopt": fusedopt.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "compiler": _native.compiler,
        },
        "isa": _native.selected_isa(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)
        },
        "commit": commit(),
    }


def commit() -> str | None:
    """The commit of the checkout that this runs from or in, "-dirty" if changed; else None."""
    for root in (Path(fusedopt.__file__).parents[1], Path.cwd()):
        if (root / "csrc" / "rules").is_dir() and (root / ".git").exists():
            command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
            try:
                described = subprocess.run(
                    command, cwd=root, capture_output=True, text=True, check=True
                )
            except (OSError, subprocess.CalledProcessError):
                return None
            return described.stdout.strip()
    return None
