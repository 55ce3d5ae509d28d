"""What the extension needs of torch: an exchange table that it can read, or a clear refusal.

And what it takes from torch's library where that answers: speed, and nothing else.
"""

from __future__ import annotations

import importlib

import pytest
import torch

import forked
import fusedopt
from fusedopt import _native, local_tensor, part_of

# A torch whose table a test has changed; its memory has the layout of dlpack.h.
PRELUDE = """
import ctypes, types
import torch
from fusedopt import _native, local_tensor, part_of

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
    _native.attach(fake, local_tensor, part_of)

def attach_table(name=NAME, **options):
    original = torch.Tensor.__dlpack_c_exchange_api__
    torch.Tensor.__dlpack_c_exchange_api__ = new_capsule(ctypes.addressof(table), name, None)
    try:
        _native.attach(torch, local_tensor, part_of, **options)
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
    forked.run_python(PRELUDE + code)


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


def test_this_torch_is_read_through_its_library():
    assert _native.torch_answers() == ["description", "negation", "version"]


def test_of_a_tried_release_all_functions_are_called():
    run_python("""
for torch.__version__ in ("2.13.0", "2.13.0+cpu", "2.13.5+cu130"):
    _native.attach(torch, local_tensor, part_of)
    assert _native.torch_answers() == ["description", "negation", "version"], torch.__version__
""")


def test_of_another_release_only_stable_functions_are_called():
    run_python("""
import fusedopt
for torch.__version__ in ("2.12.1", "2.14.0", "2.130.0", "3.13.0", "2.13", "2.13.0a0+git5",
                          "2.13.0rc1", "2.13.0.dev1", "v2.13.0", "", "unknown", None, 2.13):
    _native.attach(torch, local_tensor, part_of)
    assert _native.torch_answers() == ["description"], torch.__version__
    check()
    negated = torch.nn.Parameter(torch.ones(3))
    negated.grad = torch._neg_view(torch.ones(3))
    before = negated._version
    fusedopt.SGD([negated], lr=0.5).step()
    assert negated.tolist() == [1.5] * 3
    assert negated._version == before + 1
""")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0", "switched off by FUSEDOPT_TORCH_LIBRARY=0"), ("1", "description, negation, version")],
)
def test_the_environment_switches_the_library(value, expected):
    code = f"""
import torch, fusedopt
from fusedopt import info
param = torch.ones(3); param.grad = torch._neg_view(torch.ones(3))
fusedopt.SGD([param], lr=0.5).step()
assert param.tolist() == [1.5] * 3
assert info.collect()["torch's library tells"] == {expected!r}
assert (fusedopt._native.torch_answers() == []) == {value == "0"}
"""
    forked.run_python(code, FUSEDOPT_TORCH_LIBRARY=value)


@pytest.mark.parametrize("value", ["", "2", "no", "true", " 1"])
def test_another_value_of_the_switch_is_refused(value, monkeypatch):
    monkeypatch.setenv("FUSEDOPT_TORCH_LIBRARY", value)
    with pytest.raises(ValueError, match=f"FUSEDOPT_TORCH_LIBRARY must be 0 or 1, not '{value}'"):
        importlib.reload(fusedopt.environment)


def test_the_import_refuses_another_value_of_the_switch():
    code = """
try:
    import fusedopt
except ValueError as error:
    assert str(error) == "FUSEDOPT_TORCH_LIBRARY must be 0 or 1, not 'off'", error
else:
    raise AssertionError
"""
    forked.run_python(code, FUSEDOPT_TORCH_LIBRARY="off")


def test_the_library_is_left_alone_if_told_so():
    _native.attach(torch, local_tensor, part_of, use_library=False)
    try:
        assert _native.torch_answers() == []
    finally:
        _native.attach(torch, local_tensor, part_of)


def test_import_in_inference_mode_and_on_another_default_device():
    code = """
import torch
torch.set_default_device("meta")
with torch.inference_mode():
    import fusedopt
assert fusedopt._native.torch_answers() == ["description", "negation", "version"]
"""
    forked.run_python(code)


@pytest.mark.parametrize(
    "change",
    [
        "names['empty'] = lambda *args, **kw: Hidden(torch.empty(*args, **kw))",
        "names['empty'] = lambda *args, **kw: 1 / 0",
        "names['empty'] = lambda *args, **kw: Odd(torch.empty(*args, **kw))",
    ],
    ids=["implementation is not where it says", "no samples", "its address is no number"],
)
def test_a_library_that_cannot_be_tried_is_not_used(change):
    run_python(f"""
class Hidden(torch.Tensor):
    _cdata = property(lambda self: 1)

class Odd(torch.Tensor):
    _cdata = property(lambda self: "somewhere")  # what fails is a conversion, in C++

names = dict(Tensor=torch.Tensor, nn=torch.nn, get_num_threads=torch.get_num_threads,
             autograd=torch.autograd, empty=torch.empty)
{change}
for dtype in ("float64", "bfloat16", "float16", "int32", "int64"):
    names[dtype] = getattr(torch, dtype)
_native.attach(types.SimpleNamespace(**names), local_tensor, part_of)
assert _native.torch_answers() == [], _native.torch_answers()
check()
""")


def test_ctrl_c_while_the_library_is_tried_is_passed_on():
    run_python("""
def interrupted(*args, **kw):
    raise KeyboardInterrupt

original, torch.empty = torch.empty, interrupted
try:
    _native.attach(torch, local_tensor, part_of)
except KeyboardInterrupt:
    torch.empty = original
else:
    raise AssertionError
assert "description" in _native.torch_answers()  # as it was
check()
""")


def test_a_library_that_says_something_else_than_the_table_is_not_asked():
    run_python("""
DESCRIBE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
describe = DESCRIBE(real.describe)

@DESCRIBE
def elsewhere(tensor, out):
    error = describe(tensor, out)
    ctypes.c_void_p.from_address(out).value = ctypes.addressof(real)
    return error

table.describe = ctypes.cast(elsewhere, ctypes.c_void_p)
attach_table()
assert _native.torch_answers() == ["negation", "version"], _native.torch_answers()
_native.attach(torch, local_tensor, part_of)
assert "description" in _native.torch_answers()
check()
""")


def test_samples_without_memory_prove_nothing():
    code = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    import fusedopt
assert "description" not in fusedopt._native.torch_answers()
"""
    forked.run_python(code)


# A number that the table calls one on a GPU, to which `to` does not take it.
ELSEWHERE = """
DESCRIBE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_void_p)
describe = DESCRIBE(real.describe)
CUDA = 2
asked = 0

@DESCRIBE
def on_a_gpu(tensor, out):
    global asked
    if tensor is not number or not hidden:
        return describe(tensor, out)
    asked += 1
    if asked > times:
        ctypes.pythonapi.PyErr_SetNone(ctypes.py_object(RuntimeError))
        return -1
    error = describe(tensor, out)
    ctypes.c_int32.from_address(out + 8).value = CUDA  # DLTensor: data, then the kind of device
    return error

table.describe = ctypes.cast(on_a_gpu, ctypes.c_void_p)
hidden, number = False, torch.tensor(2.0)
attach_table(use_library=False)
hidden = True
"""


@pytest.mark.parametrize(
    ("name", "times"),
    [("grad_scale", 1), ("found_inf", 100)],
    ids=["no longer a number", "still elsewhere"],
)
def test_a_scalers_number_that_cannot_be_brought_is_refused(name, times):
    run_python(f"""
times = {times}
{ELSEWHERE}
import fusedopt
param = torch.ones(3); param.grad = torch.ones(3)
optimizer = fusedopt.SGD([param], lr=0.5)
optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
optimizer.{name} = number
try:
    optimizer.step()
except TypeError as error:
    assert "{name} is on another device than the parameters" in str(error), error
else:
    raise AssertionError(param)
assert param.tolist() == [1] * 3
""")
