"""Streams, events and graphs of the stand-in for CUDA's runtime, as torch.cuda has them."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import torch

from fusedopt import _cuda_stand_in as native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def device_index(device: Any = None) -> int:
    """The number of a GPU, which a device may leave to the thread."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return native.get_device() if index is None else index


class OnDevice:
    """torch.cuda.device: makes a device the thread's current one."""

    def __init__(self, device: Any):
        self.index = device_index(device)

    def __enter__(self) -> None:
        self.before = native.get_device()
        native.set_device(self.index)

    def __exit__(self, *_: Any) -> None:
        native.set_device(self.before)


class Event:
    """torch.cuda.Event; it is destroyed with the object."""

    def __init__(self, *_: Any, **__: Any):
        self.handle = native.event_create()

    def __del__(self) -> None:
        native.event_destroy(self.handle)

    def record(self, stream: Stream | None = None) -> None:
        """Records what is queued in a stream, or in the current one."""
        stream = stream or current_stream()
        self.time = time.perf_counter()
        with OnDevice(stream.device):
            native.event_record(self.handle, stream.cuda_stream)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds of the host's clock between both recordings: no time of any GPU."""
        return 1e3 * (end.time - self.time)

    def query(self) -> bool:
        """Whether all of it is done."""
        try:
            native.event_query(self.handle)
        except RuntimeError as error:
            if str(error) != "cudaErrorNotReady":
                raise
            native.take_last_error()
            return False
        return True

    def synchronize(self) -> None:
        """Waits for it."""
        native.event_synchronize(self.handle)


class Stream:
    """torch.cuda.Stream. The default stream of a device has the handle 0."""

    def __init__(self, device: Any = None, *_: Any, handle: int | None = None, **__: Any):
        self.device = torch.device("cuda", device_index(device))
        self.graph: Graph | None = None  # that is being captured
        with OnDevice(self.device):
            self.cuda_stream = native.stream_create(False) if handle is None else handle

    def is_capturing(self) -> bool:
        """Whether what is queued goes into a graph."""
        return self.graph is not None

    def synchronize(self) -> None:
        """Waits for what is queued."""
        with OnDevice(self.device):
            native.stream_synchronize(self.cuda_stream)

    def wait_stream(self, other: Stream) -> None:
        """Has later work come after what is queued in another stream."""
        event = Event()
        event.record(other)
        with OnDevice(self.device):
            native.stream_wait_event(self.cuda_stream, event.handle)


class _Current(threading.local):
    """The current stream of each device in a thread."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}


_current = _Current()
_default: dict[int, Stream] = {}


def default_stream(device: Any = None) -> Stream:
    """torch.cuda.default_stream."""
    index = device_index(device)
    if index not in _default:
        _default[index] = Stream(index, handle=0)
    return _default[index]


def current_stream(device: Any = None) -> Stream:
    """torch.cuda.current_stream."""
    index = device_index(device)
    return _current.streams.get(index) or default_stream(index)


@contextlib.contextmanager
def use_stream(stream: Stream) -> Iterator[None]:
    """torch.cuda.stream."""
    index = device_index(stream.device)
    before = current_stream(index)
    _current.streams[index] = stream
    try:
        yield
    finally:
        _current.streams[index] = before


class Graph:
    """torch.cuda.CUDAGraph: what the runtime has captured and, between, operations of torch."""

    def __init__(self, *_: Any, **__: Any):
        self.parts: list[int | Callable[[], None]] = []  # handles of executable graphs; operations
        self.stream: Stream | None = None
        self.mode = "global"

    def capture_begin(self, *_: Any, capture_error_mode: str = "global", **__: Any) -> None:
        """Captures what is queued in the current stream from now on."""
        self.stream, self.mode = current_stream(), capture_error_mode.removesuffix("_local")
        native.begin_capture(self.stream.cuda_stream, self.mode)
        self.stream.graph = self

    def add(self, operation: Callable[[], None]) -> None:
        """An operation of torch, which comes after everything that was captured before."""
        assert self.stream is not None
        self._end_part()
        self.parts.append(operation)
        native.begin_capture(self.stream.cuda_stream, self.mode)

    def capture_end(self) -> None:
        """Ends the capture."""
        assert self.stream is not None
        self.stream.graph = None
        self._end_part()

    def _end_part(self) -> None:
        assert self.stream is not None
        graph = native.end_capture(self.stream.cuda_stream)
        self.parts.append(native.graph_instantiate(graph))
        native.graph_destroy(graph)

    def replay(self) -> None:
        """Queues everything in the current stream."""
        stream = current_stream()
        for part in self.parts:
            if isinstance(part, int):
                native.graph_launch(part, stream.cuda_stream)
            else:
                stream.synchronize()
                part()

    def reset(self) -> None:
        """Gives up what was captured."""
        parts, self.parts = self.parts, []
        for part in parts:
            if isinstance(part, int):
                native.exec_destroy(part)

    def __del__(self) -> None:
        self.reset()
