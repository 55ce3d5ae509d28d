"""Tensors that torch takes for a GPU's, in the memory of the stand-in for CUDA's runtime.

This torch may know no GPU at all: it takes in what DLPack describes, and then has a plain tensor,
with device, storage and autograd. The host cannot touch the memory at the tensor's address. What
torch does with it is done at a second address of the same bytes.
"""

from __future__ import annotations

import bisect
import ctypes
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from fusedopt import _cuda_stand_in as native
from torch_gpu.streams import OnDevice, current_stream, device_index

DEVICES = 2
CPU = torch.device("cpu")
MEMORY_SIZE = 40 << 20  # of a device, for tensors
ALIGNMENT = 512  # as in torch's allocator

_KINDS = {torch.bool: 6, torch.bfloat16: 4, torch.uint8: 1, torch.complex64: 5, torch.complex128: 5}
_CUDA = 2  # a device of DLPack


class _Described(ctypes.Structure):
    """DLManagedTensor of DLPack."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Memory:
    """A device's memory for tensors. As in torch, a block belongs to the stream that it is made in.

    What is freed may still be in use by that stream, which is waited for before others get it.
    """

    def __init__(self, device: int):
        with OnDevice(device):
            self.address = native.malloc(MEMORY_SIZE)
        self.device = device
        self.host = native.host_address(self.address)
        self.written = np.frombuffer(native.written(self.address), np.uint8)
        self.free = [(0, MEMORY_SIZE)]  # begin and size, in order
        self.returned: list[tuple[int, int, Any]] = []
        self.allocated = 0  # how often

    def allocate(self, size: int) -> tuple[int, int, Any]:
        """A block: begin, size and stream. It holds what it held, and counts as not written."""
        stream = current_stream(self.device)
        if self.returned and not stream.is_capturing():
            self._take_returned()
        size += -size % ALIGNMENT
        self.allocated += 1
        for index, (begin, room) in enumerate(self.free):
            if room < size:
                continue
            self.free[index : index + 1] = [(begin + size, room - size)] if room > size else []
            self.written[begin : begin + size] = 0
            return begin, size, stream
        raise torch.OutOfMemoryError("the stand-in's memory is used up")

    def _take_returned(self) -> None:
        returned, self.returned = self.returned, []
        for stream in {stream for _, _, stream in returned}:
            stream.synchronize()
        for begin, size, _ in returned:
            bisect.insort(self.free, (begin, size))
        joined: list[tuple[int, int]] = []
        for begin, size in self.free:
            is_next = bool(joined) and sum(joined[-1]) == begin
            first, before = joined.pop() if is_next else (begin, 0)
            joined.append((first, before + size))
        self.free = joined

    @property
    def used(self) -> int:
        """Bytes that are given out."""
        return MEMORY_SIZE - sum(size for _, size in self.free)


_memories: dict[int, Memory] = {}
_blocks: dict[int, tuple[Any, ...]] = {}  # what torch holds, by the address of its description


def memory_of(device: int) -> Memory:
    """The memory of a device."""
    if device not in _memories:
        _memories[device] = Memory(device)
    return _memories[device]


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _release(description: int) -> None:
    _, _, memory, block = _blocks.pop(description)
    memory.returned.append(block)


_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def new_tensor(shape: Any, stride: Any, dtype: torch.dtype, device: int) -> torch.Tensor:
    """A tensor on the device that holds nothing yet."""
    memory = memory_of(device)
    like = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    size = like.untyped_storage().nbytes() if like.numel() else 0
    block = memory.allocate(size)
    numbers = (ctypes.c_int64 * (2 * len(shape) + 1))(*shape, *stride)
    pointer = ctypes.POINTER(ctypes.c_int64)
    described = _Described(
        data=memory.address + block[0] if size else None,
        device_type=_CUDA,
        device_id=device,
        ndim=len(shape),
        code=_KINDS.get(dtype, 2 if dtype.is_floating_point else 0),
        bits=8 * dtype.itemsize,
        lanes=1,
        shape=ctypes.cast(numbers, pointer),
        strides=ctypes.cast(ctypes.byref(numbers, 8 * len(shape)), pointer),
        deleter=ctypes.cast(_release, ctypes.c_void_p).value,
    )
    address = ctypes.addressof(described)
    _blocks[address] = (described, numbers, memory, block)
    return from_dlpack(_new_capsule(address, b"dltensor", None))


def copy_to_device(tensor: torch.Tensor, device: int, is_written: bool) -> torch.Tensor:
    """A tensor on the device like one of the host, with its values if they have been written."""
    stride = torch.empty_like(tensor, device="meta").stride()  # dense
    result = new_tensor(tensor.shape, stride, tensor.dtype, device)
    if is_written:
        on_host(result).copy_(tensor)
        mark_written(result)
    return result


def on_host(tensor: torch.Tensor) -> torch.Tensor:
    """The same elements at the address where the host may read and write them."""
    result = torch.empty(0, dtype=tensor.dtype)
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    storage = tensor.untyped_storage()
    memory = memory_of(device_index(tensor.device))
    address = storage.data_ptr() - memory.address + memory.host
    same_bytes = torch._C._construct_storage_from_data_pointer(address, CPU, storage.nbytes())
    result.set_(same_bytes, tensor.storage_offset(), tensor.shape, tensor.stride())
    result = result.conj() if tensor.is_conj() else result
    return torch._neg_view(result) if tensor.is_neg() else result


def mark_written(tensor: torch.Tensor) -> None:
    """The stand-in objects to kernels that read what nobody has written."""
    if not tensor.numel():
        return
    memory = memory_of(device_index(tensor.device))
    storage = tensor.untyped_storage()
    begin = storage.data_ptr() - memory.address
    memory.written[begin : begin + storage.nbytes()] = 1
