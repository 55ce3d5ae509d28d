"""What is stepped: the shapes of well-known models, and lists that are hard for other reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import shapes
from .shapes import Shape


@dataclass(frozen=True)
class Workload:
    """The shapes of the tensors of every parameter group.

    Attributes:
        dtype: of parameters, gradients and states, if it is not the run's.
    """

    name: str
    groups: list[list[Shape]]
    dtype: str | None = None

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(len(group) for group in self.groups)

    @property
    def elements(self) -> int:
        """Number of elements of all tensors together."""
        return sum(math.prod(shape) for group in self.groups for shape in group)


def equal_tensors(tensors: int, elements: int, name: str = "") -> Workload:
    """So many tensors of so many elements each."""
    shape: Shape = (elements,)
    return Workload(name or f"{tensors}x{elements}", [tensors * [shape]])


# 3000x3500 is the case for which torch got its multi-tensor optimizers: pytorch issue 3929.
_IN_THE_RUNS_DTYPE = {
    workload.name: workload
    for workload in (
        equal_tensors(1, 64 * 1024 * 1024, "one-64m"),
        Workload("gpt2-124m", [shapes.gpt2_small()]),
        Workload("bert-base", [shapes.bert_base()]),
        Workload("vit-b-16", [shapes.vit_base()]),
        Workload("llama-1b", [shapes.llama_1b()]),
        Workload("embeddings", [shapes.embeddings()]),
        Workload("resnet-50", [shapes.resnet50()]),
        Workload("lora", [shapes.lora_adapters()]),
        Workload("mlp", [shapes.perceptron(784, 256, 256, 10)]),
        Workload("actor-critic", shapes.actor_critic()),
        equal_tensors(1000, 64),
        equal_tensors(3000, 3500),
        Workload("500-groups", 500 * equal_tensors(1, 4096).groups),
    )
}

_IN_16_BITS = {
    f"{name}-{dtype}": Workload(f"{name}-{dtype}", _IN_THE_RUNS_DTYPE[name].groups, dtype)
    for name in ("one-64m", "gpt2-124m", "resnet-50")
    for dtype in ("bfloat16", "float16")
}

WORKLOADS = {**_IN_THE_RUNS_DTYPE, **_IN_16_BITS}

# What one process of an offloaded model steps: flat tensors, as sharding makes them.
OFFLOAD = equal_tensors(4, 64 * 1024 * 1024, "offload")
OFFLOAD_QUICK = equal_tensors(4, 4 * 1024 * 1024, "offload-16m")

# What stays in a core's second-level cache in every format: arithmetic is all that a step takes.
IN_CACHE = equal_tensors(1, 64 * 1024, "one-64k")

# Those that a quick run leaves out: as large as others, or larger.
LONG = (
    "bert-base",
    "vit-b-16",
    "llama-1b",
    "embeddings",
    *(name for name in _IN_16_BITS if not name.startswith("resnet-50")),
)

# A GPU has the memory for a larger tensor, and needs it to be busy for longer than a launch takes.
GPU_WORKLOADS = {
    "one-256m": equal_tensors(1, 256 * 1024 * 1024, "one-256m"),
    **{name: workload for name, workload in WORKLOADS.items() if not name.startswith("one-64m")},
}

# How time grows with the number of tensors of 64 and of 3,500 elements, from 1 to 10,000, and with
# the elements of one tensor, from 2^6 to 2^28.
TENSORS = [
    equal_tensors(tensors, elements)
    for elements in (64, 3500)
    for tensors in (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
]
ELEMENTS = [equal_tensors(1, 1 << power) for power in range(6, 29, 2)]
