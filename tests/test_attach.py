"""What the extension needs of torch: an exchange table that it can read, or a clear refusal."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A torch whose table a test has changed; its memory has the layout of dlpack.h.
PRELUDE = """
import ctypes, types
import torch
from fusedopt import _native, local_tensor

class Table(ctypes.Structure):
    _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32),
                ("older", ctypes.c_void_p)] + [
        (name, ctypes.c_void_p) for name in ("allocate", "from_object", "to_object", "describe",
                                             "stream")]

get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
get_pointer.restype, get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
NAME = ctypes.c_char_p(b"dlpack_exchange_api")
real = Table.from_address(get_pointer(torch.Tensor.__dlpack_c_exchange_api__, NAME))
table = Table.from_buffer_copy(real)

def attach(**attributes):
    tensor = type("Tensor", (), {"is_neg": torch.Tensor.is_neg, **attributes})
    fake = types.SimpleNamespace(
        Tensor=tensor, nn=torch.nn, get_num_threads=torch.get_num_threads, autograd=torch.autograd,
        empty=torch.empty)
    _native.attach(fake, local_tensor)

def attach_table(name=NAME):
    original = torch.Tensor.__dlpack_c_exchange_api__
    torch.Tensor.__dlpack_c_exchange_api__ = new_capsule(ctypes.addressof(table), name, None)
    try:
        _native.attach(torch, local_tensor)
    finally:
        torch.Tensor.__dlpack_c_exchange_api__ = original

def check():
    param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)
    import fusedopt
    fusedopt.SGD([param], lr=0.5).step()
    assert param.tolist() == [0.5] * 3
"""

REFUSED = {
    "no table": ("attach()", "needs torch 2.10 or later"),
    "not a capsule": ("attach(__dlpack_c_exchange_api__=3)", "holds no exchange table: 3"),
    "another capsule": ("other = ctypes.c_char_p(b'other'); attach_table(other)",
                        "holds no exchange table: <capsule"),
    "newer major version": ("table.major += 1; table.older = None; attach_table()",
                            r"needs an exchange table of DLPack 1.2 or a later minor version; "
                            r"that of this torch is of version 2."),
    "older major version": ("table.major = 0; table.minor = 8; table.older = None; attach_table()",
                            "this torch is of version 0.8"),
    "older minor version": ("table.minor = 1; attach_table()", "this torch is of version 1.1"),
    "no streams": ("table.stream = None; attach_table()", "lacks .* or current_work_stream"),
    "no descriptions": ("table.describe = None; attach_table()",
                        "lacks dltensor_from_py_object_no_sync"),
}  # fmt: skip


def run_python(code):
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_torch_that_cannot_be_read_is_refused_and_changes_nothing():
    """All in one process, which goes on with the torch that it had."""
    trials = "\n".join(
        f"""
table = Table.from_buffer_copy(real)
try:
    {code}
except ImportError as error:
    assert re.search({message!r}, str(error)), error
else:
    raise AssertionError({name!r})
check()
"""
        for name, (code, message) in REFUSED.items()
    )
    run_python("import re\n" + trials)


@pytest.mark.parametrize(
    "change",
    ["pass", "table.minor += 5", "table.major += 1; table.older = ctypes.addressof(real)"],
    ids=["as it is", "later minor version", "newer major version with an older table"],
)
def test_a_torch_that_can_be_read_is_accepted(change):
    run_python(f"{change}\nattach_table()\ncheck()")
