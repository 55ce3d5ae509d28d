"""What is stepped: the shapes of well-known models, and lists that are hard for other reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Workload:
    """The shapes of the tensors of every parameter group."""

    name: str
    groups: list[list[Shape]]

    @property
    def tensors(self) -> int:
        """Number of tensors."""
        return sum(len(group) for group in self.groups)

    @property
    def elements(self) -> int:
        """Number of elements of all tensors together."""
        return sum(math.prod(shape) for group in self.groups for shape in group)


def _linear(inputs: int, outputs: int) -> list[Shape]:
    """Weight and bias of ``torch.nn.Linear``."""
    return [(outputs, inputs), (outputs,)]


def _conv(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    """Weight of a convolution without bias, then weight and bias of its batch normalisation."""
    return [(outputs, inputs, kernel, kernel), (outputs,), (outputs,)]


def gpt2_small() -> list[Shape]:
    """GPT-2 small: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.

    The linear layers are stored (inputs, outputs), as published; the head shares the embedding.
    """
    vocabulary, context, layers, width = 50257, 1024, 12, 768

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    norm = [(width,), (width,)]
    attention = linear(width, 3 * width) + linear(width, width)
    mlp = linear(width, 4 * width) + linear(4 * width, width)
    block = norm + attention + norm + mlp
    return [(vocabulary, width), (context, width), *(layers * block), *norm]


def resnet50() -> list[Shape]:
    """ResNet-50: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, table 1."""
    shapes = _conv(3, 64, 7)
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 64 << stage
        outputs = 4 * width
        for block in range(blocks):
            shapes += _conv(inputs, width, 1) + _conv(width, width, 3) + _conv(width, outputs, 1)
            if block == 0:
                shapes += _conv(inputs, outputs, 1)  # the shortcut, where the width changes
            inputs = outputs
    return shapes + _linear(inputs, 1000)


def mlp() -> list[Shape]:
    """A classifier of 28 x 28 images with two hidden layers."""
    return [shape for sizes in pairwise((784, 256, 256, 10)) for shape in _linear(*sizes)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("one-64m", [[(64 * 1024 * 1024,)]]),
        Workload("gpt2-124m", [gpt2_small()]),
        Workload("resnet-50", [resnet50()]),
        Workload("mlp", [mlp()]),
        Workload("1000x64", [1000 * [(64,)]]),
        Workload("3000x3500", [3000 * [(3500,)]]),
        Workload("500-groups", 500 * [[(4096,)]]),
    )
}

# A GPU has the memory for a larger tensor, and needs it to be busy for longer than a launch takes.
GPU_WORKLOADS = {
    "one-256m": Workload("one-256m", [[(256 * 1024 * 1024,)]]),
    **{name: workload for name, workload in WORKLOADS.items() if name != "one-64m"},
}
