"""What the built CUDA module carries: read with NVIDIA's ``cuobjdump``, which needs no GPU."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

SPEC = find_spec("fusedopt._cuda")

# The PTX that machine code was made from; see cmake/CUDA.cmake.
PTX_OF = {"sm_80": "sm_80", "sm_90": "sm_80", "sm_100": "sm_100", "sm_120": "sm_100"}


def tool_path() -> str:
    """The PATH with the tools of the packages nvidia-cuda-cuobjdump and -nvdisasm."""
    folders = [str(p) for entry in sys.path for p in Path(entry).glob("nvidia/*/bin")]
    return os.pathsep.join([*folders, os.environ["PATH"], "/usr/local/cuda/bin"])


def dump(*options: str) -> str:
    """What cuobjdump says of the CUDA module."""
    path = tool_path()
    cuobjdump = shutil.which("cuobjdump", path=path)
    assert cuobjdump, "cuobjdump is missing: pip install '.[test]'"
    return subprocess.run(
        [cuobjdump, *options, SPEC.origin],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
    ).stdout


@functools.cache
def ptx_texts() -> dict[str, list[str]]:
    """The PTX of the module's units, by the architecture that they name."""
    texts = defaultdict(list)
    for text in re.split(r"^(?=\.version )", dump("-ptx"), flags=re.MULTILINE)[1:]:
        texts[re.search(r"^\.target (\w+)", text, re.MULTILINE)[1]].append(text)
    return dict(texts)
