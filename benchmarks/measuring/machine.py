"""Where and with what a result was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import numpy
import torch

import fusedopt
from fusedopt import _native
from fusedopt.info import processor_name

from ..contestants.others import OTHERS

# Variables that change how memory is allocated and how threads wait.
_PREFIXES = ("FUSEDOPT_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_")


def describe(device: str = "cpu", peers: Sequence[str] = ()) -> dict[str, Any]:
    """The machine, the versions and the instruction set; memory in bytes, the date in UTC.

    Args:
        device: "cpu", or "cuda" for the current GPU.
        peers: names of peers, whose packages' versions are given.
    """
    gpu = {"gpu": describe_gpu()} if device == "cuda" else {}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "platform": f"{platform.system()} {platform.machine()}",
            **gpu,
        },
        "versions": {
            "fusedopt": fusedopt.__version__,
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "compiler": _native.compiler,
            "peers": peer_versions(peers),
        },
        "isa": _native.selected_isa(),
        "environment": {
            name: value for name, value in sorted(os.environ.items()) if name.startswith(_PREFIXES)
        },
        "commit": commit(),
    }


def peer_versions(peers: Sequence[str]) -> dict[str, str]:
    """The versions of the packages that peers other than torch's come from, if installed."""
    packages = {OTHERS[name].distribution for name in peers if name in OTHERS}
    installed = {name for found in packages_distributions().values() for name in found}
    return {name: version(name) for name in sorted(packages & installed)}


def describe_gpu() -> dict[str, Any]:
    """The current GPU, its driver, and the version of CUDA that torch was built with."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
    }


def driver_version() -> str | None:
    """The version of NVIDIA's driver, or None where nvidia-smi does not say."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.split("\n")[0].strip()


def file_name(machine: dict[str, Any]) -> str:
    """The name of a results file: the GPU's name, or the processor's with its cores."""
    gpu = machine.get("gpu")
    name = gpu["name"] if gpu else f"{machine['processor']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".json"


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
