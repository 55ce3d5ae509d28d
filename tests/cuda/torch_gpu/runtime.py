"""Makes the stand-in for CUDA's runtime the GPU of torch and of fusedopt in this process."""

from __future__ import annotations

import ctypes
import functools
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.cuda

import fusedopt
from fusedopt import _cuda_stand_in as native
from torch_gpu import operations, streams
from torch_gpu.operations import Log
from torch_gpu.streams import Event, Graph, OnDevice, Stream, current_stream, device_index
from torch_gpu.tensors import DEVICES, MEMORY_SIZE, memory_of, new_tensor

TOTAL_MEMORY = 64 << 20

_CURRENT_WORK_STREAM = 6  # words of DLPackExchangeAPI before the function
_CPU, _CUDA = 0, 1  # kinds of devices of torch


@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))
def _current_work_stream(_: int, device: int, to: Any) -> int:
    """Told by torch to whoever asks its exchange table; the stand-in's steps run there."""
    to[0] = current_stream(device).cuda_stream
    native.use(device, to[0] or 0)
    return 0


def _tell_streams() -> None:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = get(torch.Tensor.__dlpack_c_exchange_api__, b"dlpack_exchange_api")
    words = ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p))
    words[_CURRENT_WORK_STREAM] = ctypes.cast(_current_work_stream, ctypes.c_void_p).value


def _guard_devices() -> None:
    """Has torch change devices as for the CPU, which is not at all."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[_CUDA] = guards[_CPU]


def synchronize(device: Any = None) -> None:
    """torch.cuda.synchronize; fails if anything went wrong that no correct program does."""
    native.finish()
    violations = native.take_violations()
    if violations:
        raise RuntimeError(f"{len(violations)} violations; the first: {violations[0]}")


def sleep(_: int) -> None:
    """torch.cuda._sleep: work that is not done before somebody waits for it."""
    stream = current_stream()
    memory = new_tensor((64,), (1,), torch.uint8, device_index(stream.device))
    with OnDevice(stream.device):
        native.memset(memory.data_ptr(), 0, 64, stream.cuda_stream)


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """torch.cuda.mem_get_info. What torch's own allocator keeps is not free."""
    index = device_index(device)
    memory_of(index)
    return TOTAL_MEMORY - sum(native.live(index)["memory"]), TOTAL_MEMORY


def memory_stats(device: Any = None) -> dict[str, int]:
    """torch.cuda.memory_stats, as far as it is asked for."""
    return {"allocation.all.allocated": memory_of(device_index(device)).allocated}


def get_device_properties(device: Any = None) -> SimpleNamespace:
    """torch.cuda.get_device_properties of no GPU there is."""
    return SimpleNamespace(
        name="stand-in", total_memory=TOTAL_MEMORY, multi_processor_count=1, major=8, minor=0
    )


def set_sync_debug_mode(mode: str) -> None:
    """torch.cuda.set_sync_debug_mode."""
    Log.refuses_synchronisation = mode == "error"


_Profile = torch.profiler.profile


class Profile(_Profile):
    """torch.profiler.profile, which adds to the trace what the stand-in has been asked to do."""

    def __init__(self, *, activities: Any = None, **options: Any):
        super().__init__(activities=[torch.profiler.ProfilerActivity.CPU], **options)

    def __enter__(self) -> Any:
        native.clear_calls()
        Log.names.clear()
        return super().__enter__()

    def export_chrome_trace(self, path: str) -> None:
        """The trace as torch writes it, and the device's events."""
        super().export_chrome_trace(path)
        kinds = {
            "cudaLaunchKernel": ("kernel", "step_kernel"),
            "cudaMemcpyAsync": ("gpu_memcpy", "Memcpy HtoD"),
            "cudaMemsetAsync": ("gpu_memset", "Memset"),
        }
        seen = [kinds[name] for name, _ in native.calls() if name in kinds]
        seen += [("kernel", name) for name in Log.names]
        trace = json.loads(Path(path).read_text())
        trace["traceEvents"] += [{"cat": kind, "name": name} for kind, name in seen]
        Path(path).write_text(json.dumps(trace))


def _copied(storage: torch.UntypedStorage, device: Any) -> torch.UntypedStorage:
    size = (storage.nbytes(),)
    memory = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, size, (1,))
    return memory.to(device, copy=True).untyped_storage()


_STORAGE = {
    "clone": lambda self: _copied(self, self.device),
    "cpu": lambda self: self if self.device.type == "cpu" else _copied(self, "cpu"),
    "to": lambda self, device, **_: _copied(self, device),
}

_to = torch.Tensor.to


def _to_indexed(tensor: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
    """``Tensor.to``, which would ask the GPU's part of torch for the current device."""

    def indexed(value: Any) -> Any:
        if isinstance(value, (str, torch.device)) and torch.device(value).type == "cuda":
            return torch.device("cuda", device_index(value))
        return value

    options = {name: indexed(value) for name, value in options.items()}
    return _to(tensor, *map(indexed, args), **options)


def _do_nothing() -> None:
    pass


_FUNCTIONS = {
    "_lazy_init": _do_nothing,
    "_sleep": sleep,
    "CUDAGraph": Graph,
    "Event": Event,
    "Stream": Stream,
    "current_device": native.get_device,
    "current_stream": current_stream,
    "default_stream": streams.default_stream,
    "device": OnDevice,
    "device_count": lambda: DEVICES,
    "empty_cache": _do_nothing,
    "get_device_capability": lambda _=None: (8, 0),
    "get_device_properties": get_device_properties,
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: current_stream().is_capturing(),
    "mem_get_info": mem_get_info,
    "memory_allocated": lambda device=None: memory_of(device_index(device)).used,
    "memory_reserved": lambda _=None: MEMORY_SIZE,
    "memory_stats": memory_stats,
    "set_device": native.set_device,
    "set_sync_debug_mode": set_sync_debug_mode,
    "stream": streams.use_stream,
    "synchronize": synchronize,
}


def _made_there(make: Any) -> Any:
    """A function of torch's that makes a tensor of numbers, which it would leave on the host."""

    @functools.wraps(make)
    def made(data: Any, *args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        tensor = make(data, *args, **options)
        return tensor if device is None else tensor.to(device)

    return made


def install() -> None:
    """For the rest of the process."""
    native.set_device_count(DEVICES)
    native.schedule("latest", 0)
    sys.modules["fusedopt._cuda"] = native
    fusedopt._cuda = native
    operations.install()
    _guard_devices()
    _tell_streams()
    # The threads in which torch differentiates for a GPU are those of its own engine.
    torch.autograd.set_multithreading_enabled(False)
    mock.patch.multiple(torch.cuda, create=True, **_FUNCTIONS).start()
    mock.patch.object(torch._C, "_host_emptyCache", _do_nothing, create=True).start()
    mock.patch.object(torch.profiler, "profile", Profile).start()
    mock.patch.object(torch.Tensor, "to", _to_indexed).start()
    for name in ("tensor", "as_tensor"):
        mock.patch.object(torch, name, _made_there(getattr(torch, name))).start()
    mock.patch.multiple(torch.UntypedStorage, **_STORAGE).start()
