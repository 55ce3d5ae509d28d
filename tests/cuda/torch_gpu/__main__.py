"""Runs a program with the stand-in for CUDA's runtime as its GPU.

``PYTHONPATH=tests/cuda python -m torch_gpu tests/gpu/sanitize.py``, or ``-m torch_gpu -m MODULE``.
"""

import runpy
import sys

from torch_gpu import runtime

runtime.install()
if sys.argv[1] == "-m":
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
runtime.synchronize()
