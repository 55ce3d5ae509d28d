"""Optimizers of other packages, where those are installed: ``pip install 'fusedopt[peers]'``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

# Makes an optimizer, or anything that has ``step``, from parameter groups.
Factory = Callable[..., Any]


@dataclass(frozen=True)
class Other:
    """A package's counterparts of this package's optimizers.

    Attributes:
        distribution: the name under which the package is installed.
        classes: for an optimizer of this package, module, class and arguments of the counterpart.
        low_bit: its states have 8 bits, so it computes something else on purpose.
    """

    distribution: str
    classes: dict[str, tuple[str, str, dict[str, Any]]]
    low_bit: bool = False

    def factory(self, optimizer: str) -> Factory | None:
        """What makes the counterpart of an optimizer, if there is one; imports when called."""
        if optimizer not in self.classes:
            return None
        return partial(make, *self.classes[optimizer])


def make(module: str, name: str, options: dict[str, Any], groups: list[dict[str, Any]]) -> Any:
    """An optimizer of a package, which is imported only now."""
    if module.startswith("deepspeed") and groups[0]["params"][0].device.type == "cpu":
        # DeepSpeed's documented switch; without it, what it takes for the accelerator may be a GPU
        # that torch cannot use.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    made = getattr(import_module(module), name)
    return made(groups, **options)


_MOMENTUM = {"momentum": 0.9}
_TORCHS_DECAY = {"weight_decay": 0.01}
_TORCHS_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}

# Arguments are those that give the defaults of torch's classes. optimi chooses its fastest
# implementation for a device by itself. DeepSpeed's Adam defaults to AdamW.
OTHERS = {
    "deepspeed": Other(
        "deepspeed",
        {
            "Adam": ("deepspeed.ops.adam", "DeepSpeedCPUAdam", {"adamw_mode": False}),
            "AdamW": ("deepspeed.ops.adam", "DeepSpeedCPUAdam", _TORCHS_DECAY),
            "Adagrad": ("deepspeed.ops.adagrad", "DeepSpeedCPUAdagrad", {}),
        },
    ),
    "optimi": Other(
        "torch-optimi",
        {
            "SGD": ("optimi", "SGD", {"lr": 1e-3, **_MOMENTUM}),
            "Adam": ("optimi", "Adam", {"lr": 1e-3, **_TORCHS_ADAM}),
            "AdamW": ("optimi", "AdamW", {"lr": 1e-3, **_TORCHS_ADAM, **_TORCHS_DECAY}),
        },
    ),
    "bitsandbytes": Other(
        "bitsandbytes",
        {
            "Adam": ("bitsandbytes.optim", "Adam32bit", {}),
            "SGD": ("bitsandbytes.optim", "SGD32bit", {"lr": 1e-3, **_MOMENTUM}),
            "Adagrad": ("bitsandbytes.optim", "Adagrad32bit", {}),
            "RMSprop": ("bitsandbytes.optim", "RMSprop32bit", {}),
            "AdamW": ("bitsandbytes.optim", "AdamW32bit", _TORCHS_DECAY),
        },
    ),
    "bitsandbytes-8bit": Other(
        "bitsandbytes",
        {
            "Adam": ("bitsandbytes.optim", "Adam8bit", {}),
            "AdamW": ("bitsandbytes.optim", "AdamW8bit", _TORCHS_DECAY),
        },
        low_bit=True,
    ),
    "torchao-8bit": Other(
        "torchao",
        {
            "Adam": ("torchao.optim", "Adam8bit", {}),
            "AdamW": ("torchao.optim", "AdamW8bit", _TORCHS_DECAY),
        },
        low_bit=True,
    ),
}
