"""torch's operations on tensors of the GPU, carried out by its operations for the CPU."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import library
from torch.utils._pytree import tree_map_only

from torch_gpu.streams import current_stream, device_index
from torch_gpu.tensors import copy_to_device, mark_written, new_tensor, on_host

# Kernels that torch has for all devices; underneath, many ask for the GPU's part of torch.
_FOR_ALL_DEVICES = ("CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional")

# They change what a tensor is, not what its memory holds.
_ON_TENSORS = ("aten::set_", "aten::as_strided_")

_libraries: list[library.Library] = []


class Log:
    """What a profiler of the device, and torch's watch over synchronisation, see of operations."""

    names: list[str] = []  # noqa: RUF012
    refuses_synchronisation = False


def is_on_gpu(value: Any) -> bool:
    """Whether it is a tensor on the GPU."""
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def install() -> None:
    """Has torch call these operations for the GPU."""
    everything = library.Library("_", "IMPL")
    everything.fallback(_run, "CUDA")
    aten = library.Library("aten", "IMPL")
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they have kernels already
        for name in names:
            if any(has_kernel(name, key) for key in _FOR_ALL_DEVICES):
                _replace_kernel(name, aten)
    _libraries.extend([everything, aten])


def _replace_kernel(name: str, kernels: library.Library) -> None:
    packet, _, overload = name.removeprefix("aten::").partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    takes_tensors = any("Tensor" in str(argument.type) for argument in op._schema.arguments)
    # Of what a view is made, torch insists that no Python code has seen it.
    if takes_tensors and not _is_about_tensors(op):
        kernel = functools.partial(_run, op)
        kernels.impl(name, kernel, "CUDA", allow_override=True)


def _is_about_tensors(op: Any) -> bool:
    """Whether it only makes or changes a view, whatever the device."""
    if op._schema.name in _ON_TENSORS:
        return True
    aliases = [returned.alias_info for returned in op._schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        if _is_about_tensors(op):
            return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        return _Call(op, args, kwargs).run()


class _Call:
    """An operation and its arguments, as given and on the host."""

    def __init__(self, op: Any, args: Any, kwargs: Any):
        self.op = op
        self.given: dict[int, torch.Tensor] = {}  # by the id of the same on the host
        self.on_host: list[torch.Tensor] = []
        device = kwargs.get("device")
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        self.makes_on_host = device is not None and torch.device(device).type == "cpu"
        self.args, self.kwargs = tree_map_only(torch.Tensor, self._to_host, (args, kwargs))
        on_gpu = [tensor for tensor in self.given.values() if is_on_gpu(tensor)]
        is_told = device is not None and not self.makes_on_host
        self.device = device_index(on_gpu[0].device if on_gpu and not is_told else device)
        self.crosses = self._crosses(len(on_gpu), device)
        self.writes = not op._schema.name.startswith("aten::empty")

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        result = on_host(tensor) if is_on_gpu(tensor) else tensor
        self.given[id(result)] = tensor
        self.on_host.append(result)
        return result

    def _crosses(self, on_gpu: int, device: Any) -> bool:
        """Whether it copies between host and GPU."""
        if self.op._schema.name == "aten::_to_copy" and device is not None:
            return self.makes_on_host == (on_gpu > 0)
        return self.op._schema.name == "aten::copy_" and on_gpu < len(self.given)

    def run(self) -> Any:
        """The result, on the GPU where that of a GPU's operation is."""
        name = self.op._schema.name
        waits = self.crosses or name == "aten::_local_scalar_dense"
        if waits and Log.refuses_synchronisation:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.writes and not waits:
            Log.names.append(name)
        stream = current_stream(self.device)
        if stream.graph is not None:
            return self._capture(stream.graph, waits)
        if self.writes:
            stream.synchronize()
        return self._to_gpu(self.op(*self.args, **self.kwargs))

    def _to_gpu(self, result: Any) -> Any:
        for host in self.on_host:
            tensor = self.given[id(host)]
            if is_on_gpu(tensor) and host.shape != tensor.shape:
                _replace_memory(tensor, host)
        if self.op._schema.is_mutable:
            for tensor in self.given.values():
                if is_on_gpu(tensor):
                    mark_written(tensor)
        return tree_map_only(torch.Tensor, self._tensor_to_gpu, result)

    def _tensor_to_gpu(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self.given:
            return self.given[id(tensor)]
        if self.makes_on_host:
            return tensor
        return copy_to_device(tensor, self.device, self.writes)

    def _capture(self, graph: Any, waits: bool) -> Any:
        if waits:
            raise RuntimeError("operation not permitted when stream is capturing")
        if not self.writes:
            return self._to_gpu(self.op(*self.args, **self.kwargs))
        # Carried out on copies, for the shapes; a replay writes to what the first call returns.
        copies = {id(host): host.clone() for host in self.on_host}
        args, kwargs = tree_map_only(
            torch.Tensor, lambda host: copies[id(host)], (self.args, self.kwargs)
        )
        for key, copy in copies.items():
            self.given[id(copy)] = self.given[key]
        result = tree_map_only(torch.Tensor, self._tensor_to_gpu, self.op(*args, **kwargs))
        held = list(self.given.values())

        def replay(result: Any = result, held: Any = held) -> None:
            again = self.op(*self.args, **self.kwargs)
            _write_over(result, again)

        graph.add(replay)
        return result


def _write_over(result: Any, again: Any) -> None:
    results = result if isinstance(result, (list, tuple)) else [result]
    values = again if isinstance(again, (list, tuple)) else [again]
    for tensor, value in zip(results, values, strict=True):
        if is_on_gpu(tensor) and on_host(tensor).data_ptr() != value.data_ptr():
            on_host(tensor).copy_(value)


def _replace_memory(tensor: torch.Tensor, host: torch.Tensor) -> None:
    """Has a tensor that was resized on the host hold the same on the GPU."""
    fresh = new_tensor(host.shape, host.stride(), host.dtype, device_index(tensor.device))
    on_host(fresh).copy_(host)
    torch.ops.aten.set_.source_Storage_storage_offset.redispatch(
        torch._C.DispatchKeySet(torch._C.DispatchKey.CPU),
        tensor,
        fresh.untyped_storage(),
        0,
        fresh.shape,
        fresh.stride(),
    )
