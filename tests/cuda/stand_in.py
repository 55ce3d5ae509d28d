"""The CUDA engine on a stand-in for CUDA's runtime, whose devices are memory of this process.

The host cannot touch a device's memory: whoever tries ends the process. torch takes tensors in it
for tensors of the CPU, so that an optimizer can be stepped on them, as long as nobody looks inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math

import numpy as np
import pytest
import torch

from fusedopt import _native
from fusedopt.checking.rows import ROWS
from fusedopt.optimizers.clipping import Measurement
from helpers import bits

native = pytest.importorskip(
    "fusedopt._cuda_stand_in",
    reason="the stand-in for CUDA's runtime is built where CUDA's headers are found",
)

POLICIES = [("latest", 0), *(("random", seed) for seed in range(1, 5))]
each_policy = pytest.mark.parametrize(
    ("policy", "seed"), POLICIES, ids=[f"{policy} {seed}" for policy, seed in POLICIES]
)

ADAM = next(row for row in ROWS if row.name == "Adam")
TABLES_AT_ONCE = 8  # the engine allocates so many together
GRADIENT_SETS = 5

NON_BLOCKING, BLOCKING = False, True
DEFAULT_STREAM = 0

_devices = itertools.count()


def new_device() -> int:
    """A device that nobody has used, whose pool of tables is empty; the current one from now on."""
    device = next(_devices)
    native.set_device_count(device + 1)
    native.set_device(device)
    return device


@contextlib.contextmanager
def steps_on(device, stream):
    """Steps tensors that torch takes for the CPU's with the CUDA engine."""
    native.use(device, stream)
    _native.use_engine_on_cpu(native.engine)
    try:
        yield
    finally:
        _native.use_engine_on_cpu(None)


@contextlib.contextmanager
def options_left(groups):
    """Kernels derive the scalars of these parameter groups; options that are tensors they read.

    If the rule counts steps, the device has to count them.
    """
    native.leave_options([_as_left(group) for group in groups])
    try:
        yield
    finally:
        native.leave_options([])


def _as_left(group):
    """The addresses of a group's parameters, and its options as numbers, by name."""
    kinds = (int, float, tuple, torch.Tensor)
    options = {name: _numbers(value) for name, value in group.items() if isinstance(value, kinds)}
    return {param.data_ptr() for param in group["params"]}, options


def _numbers(option):
    """Each as its value, the address where a device holds it, and the type in which it does."""
    if isinstance(option, tuple):
        return [number for item in option for number in _numbers(item)]
    if isinstance(option, torch.Tensor):
        return [(math.nan, option.data_ptr(), str(option.dtype).removeprefix("torch."))]
    return [(option, 0, "float64")]


def finish():
    """Everything that is queued; nothing may have gone wrong in it, or before."""
    native.finish()
    violations = native.take_violations()
    assert not violations, violations[0]


def tables(device):
    """How many tables the engine has allocated on a device: it makes an event for each."""
    return native.live(device)["events"]


def view_of(address, like):
    """A tensor of the bytes at an address, laid out as another one. Reads and writes none."""
    size = sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True)) + 1
    size = size * like.element_size() if like.numel() else 0
    if size == 0:
        return torch.empty_like(like)
    memory = (ctypes.c_uint8 * size).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


def bytes_at(address, size):
    return np.frombuffer((ctypes.c_uint8 * size).from_address(address), np.uint8)


def floats_at(address, count):
    return bytes_at(address, 4 * count).view(np.float32)


def readable(tensor):
    """The same bytes, where the host may read and write them."""
    if not tensor.numel():
        return tensor
    return view_of(native.host_address(tensor.data_ptr()), tensor.detach())


class DeviceMemory:
    """One allocation of the current device, from which tensors are cut."""

    def __init__(self, size):
        self.address = native.malloc(size)
        self.size, self.used = size, 0
        self.written = np.frombuffer(native.written(self.address), bool)

    def put(self, values, align=16, shift=0):
        """A tensor in it with these values, laid out as they are."""
        self.used += -self.used % align + shift
        tensor = view_of(self.address + self.used, values)
        begin = self.used
        self.used += values.untyped_storage().nbytes()
        assert self.used <= self.size
        readable(tensor).copy_(values)
        self.written[begin : self.used] = True
        return tensor


class MeasurementThere(Measurement):
    """A step's, which has what is decided in a device's memory that holds nothing yet."""

    def __init__(self, memory, *options):
        super().__init__(*options)
        self.memory = memory

    def new_decision(self, param):
        decision = self.memory.put(torch.full((3,), math.nan, dtype=torch.float64))
        self.memory.written[self.memory.used - 24 : self.memory.used] = False
        self._on_devices.append(decision)
        return decision


def run_length(tensors):
    """Bytes of tensors one after the other, each at a multiple of 16."""
    return sum(tensor.untyped_storage().nbytes() + 16 for tensor in tensors) + 16


class Training:
    """Parameters on a device and the same on the CPU, stepped with the same gradients.

    Gradients come to the device in the stream, from pinned memory, as if a backward pass wrote
    them there.
    """

    def __init__(self, row, values, *, stream=None, capturable=False, grad_dtype=None, **options):
        self.device = native.get_device()
        self.stream = native.stream_create(False) if stream is None else stream
        self.twins = [torch.nn.Parameter(value.clone()) for value in values]
        self.steps = 0
        grads = [torch.empty_like(v, dtype=grad_dtype or v.dtype) for v in values]
        self.memory = DeviceMemory(8 * run_length(values) + 64 * len(values) + 4096)
        self.params = [torch.nn.Parameter(self.memory.put(value)) for value in values]
        self._place_gradients(grads, grad_dtype)
        self.twin = row.optimizer(self.twins, **options)
        self.optimizer = row.optimizer(self.params, **options, capturable=capturable)
        if "_clipping" in self.optimizer.__dict__:
            decisions = DeviceMemory(1 << 16)
            self.optimizer._begin_measurement = lambda: MeasurementThere(
                decisions, *self.optimizer._clipping
            )
        self._place_states(row.optimizer, capturable)

    def _place_gradients(self, grads, dtype):
        self.memory.used += -self.memory.used % 16
        self.grads_at, begin = self.memory.address + self.memory.used, self.memory.used
        for param, twin, grad in zip(self.params, self.twins, grads, strict=True):
            if dtype is not None:
                param.grad_dtype = twin.grad_dtype = dtype
            param.grad = self.memory.put(grad.zero_())
            twin.grad = torch.zeros_like(grad)
        self.grads_size = self.memory.used - begin
        self.pinned = [native.host_alloc(self.grads_size) for _ in range(GRADIENT_SETS)]
        generator = torch.Generator().manual_seed(len(grads))
        for address in self.pinned:
            for param in self.params:
                pinned = view_of(address + param.grad.data_ptr() - self.grads_at, param.grad)
                pinned.copy_(torch.randn(pinned.shape, generator=generator))

    def _place_states(self, optimizer_class, capturable):
        """What the first step makes is made on the CPU, for the device's memory to hold it."""
        self.set_gradients_of_twins(0)
        self.twin.step()
        for param, twin in zip(self.params, self.twins, strict=True):
            readable(param).copy_(twin.detach())
            for name, value in self.twin.state[twin].items():
                is_on_host = name in ("step", "ema_step") and not capturable
                self.optimizer.state[param][name] = (
                    value.clone() if is_on_host else self.memory.put(value)
                )

    def set_gradients_of_twins(self, number):
        for param, twin in zip(self.params, self.twins, strict=True):
            offset = param.grad.data_ptr() - self.grads_at
            twin.grad.copy_(view_of(self.pinned[number] + offset, param.grad))

    def upload_gradients(self, number, stream=None):
        stream = self.stream if stream is None else stream
        native.upload(self.grads_at, self.pinned[number], self.grads_size, stream)

    def queue_step(self):
        """The step on the device, with the gradients that are there."""
        with steps_on(self.device, self.stream):
            self.optimizer.step()

    def step_twin(self, number):
        self.set_gradients_of_twins(number)
        self.twin.step()

    def step(self):
        """One step of both sides with new gradients; that of the device is queued."""
        self.steps += 1
        number = self.steps % GRADIENT_SETS
        native.set_device(self.device)
        self.upload_gradients(number)
        self.queue_step()
        self.step_twin(number)

    def synchronize(self):
        native.stream_synchronize(self.stream)

    def snapshot(self):
        """The bits of parameters and states on the device; nothing may be queued."""
        found = []
        for param in self.params:
            states = self.optimizer.state[param]
            found.append(bits(readable(param)).copy())
            for name in sorted(states):
                value = states[name]
                found.append(bits(readable(value) if self.holds(value) else value).copy())
        return found

    def holds(self, tensor):
        return self.memory.address <= tensor.data_ptr() < self.memory.address + self.memory.size

    def snapshot_of_twins(self):
        found = []
        for twin in self.twins:
            states = self.twin.state[twin]
            found += [bits(twin).copy(), *(bits(states[name]).copy() for name in sorted(states))]
        return found

    def assert_same(self):
        """As integers. Nothing may be queued."""
        assert same(self.snapshot(), self.snapshot_of_twins())


def same(ours, theirs):
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@contextlib.contextmanager
def error(name):
    """What is done fails with this error, which is then the thread's last."""
    with pytest.raises(RuntimeError, match=f"^{name}$"):
        yield
    assert native.take_last_error() == name


@contextlib.contextmanager
def violation(words):
    """What is done is noted as something that no correct program does."""
    yield
    (noted,) = native.take_violations()
    assert words in noted
    native.take_last_error()


class Cell:
    """A byte of a device's memory, and pinned bytes to write there."""

    def __init__(self):
        self.address = native.malloc(256)
        self.bytes = bytes_at(native.host_address(self.address), 256)
        self.pinned = native.host_alloc(256)
        bytes_at(self.pinned, 256)[:] = range(256)

    def queue(self, value, stream):
        native.upload(self.address, self.pinned + value, 1, stream)

    @property
    def value(self):
        return self.bytes[0]


def tensors(count, size=3, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).to(dtype) for _ in range(count)]


@pytest.fixture
def fresh_device():
    """A new device under the latest policy; afterwards nothing may be left of what went wrong."""
    native.schedule("latest", 0)
    native.fail("", 0, 0)
    native.forget_captures()
    device = new_device()
    yield device
    finish()
    assert native.take_last_error() == "cudaSuccess"
    native.schedule("latest", 0)
