"""The CUDA engine as a module of its own: loaded when needed, clear about what is missing."""

from __future__ import annotations

import inspect
import shutil
import subprocess
from importlib.util import find_spec

import pytest
import torch

import forked
import fusedopt
from fusedopt import _native
from fusedopt.checking.rows import ROWS
from fusedopt.info import collect

HAS_CUDA = find_spec("fusedopt._cuda") is not None


def test_stepping_on_the_cpu_does_not_load_it():
    forked.run_python(
        "import sys, torch, fusedopt\n"
        "param = torch.nn.Parameter(torch.ones(3)); param.grad = torch.ones(3)\n"
        "fusedopt.Adam([param]).step()\n"
        "assert 'fusedopt._cuda' not in sys.modules"
    )


def test_without_it_the_error_says_how_to_build_it():
    forked.run_python("""
import sys, fusedopt
sys.modules["fusedopt._cuda"] = None  # as if it were not there
try:
    fusedopt._native.load_cuda()
except NotImplementedError as error:
    assert "this fusedopt was built without CUDA" in str(error), error
    assert "FUSEDOPT_CUDA=ON" in str(error), error
else:
    raise AssertionError
""")


@pytest.mark.skipif(not HAS_CUDA, reason="built without CUDA")
def test_it_loads_without_a_driver():
    _native.load_cuda()
    from fusedopt import _cuda

    assert _cuda.architectures.startswith("sm_80, sm_90")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"CUDA: .* asking for devices"):
            _cuda.device_count()


@pytest.mark.skipif(not HAS_CUDA or shutil.which("ldd") is None, reason="built without CUDA")
def test_it_links_no_runtime_that_torch_might_have_in_another_version():
    libraries = subprocess.run(
        ["ldd", find_spec("fusedopt._cuda").origin], capture_output=True, text=True, check=True
    ).stdout
    assert "cuda" not in libraries.split("\n", 1)[1]


def test_info_says_what_was_built():
    text = collect()["CUDA in fusedopt"]
    assert text == "not built" if not HAS_CUDA else "sm_90" in text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_optimizer_can_be_made_capturable(row):
    assert not inspect.signature(row.optimizer).parameters["capturable"].default
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = row.optimizer([param], capturable=True)
    assert optimizer.param_groups[0]["capturable"] is True
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert optimizer.param_groups[1]["capturable"] is True
    with pytest.raises(AssertionError, match="capturable=True needs a parameter on a device"):
        optimizer.step()
    assert torch.equal(param.detach(), torch.ones(3))


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.torch_optimizer], ids=lambda row: row.name
)
def test_capturable_survives_a_checkpoint_of_torch(row):
    """Also where torch's class, and so its checkpoint, has no such option."""
    saved = row.torch_optimizer([torch.nn.Parameter(torch.ones(3))]).state_dict()
    knows = "capturable" in saved["param_groups"][0]
    optimizer = row.optimizer([torch.nn.Parameter(torch.ones(3))], capturable=True)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["capturable"] is not knows
    default = row.optimizer([torch.nn.Parameter(torch.ones(3))])
    assert default.param_groups[0].keys() == saved["param_groups"][0].keys()


def test_the_engine_on_the_cpu_can_be_replaced_by_an_engine_only():
    with pytest.raises((ValueError, TypeError)):
        _native.use_engine_on_cpu(object())
    assert fusedopt.SGD([torch.nn.Parameter(torch.ones(1))]).step() is None
