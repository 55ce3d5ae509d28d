"""Ways to store parameters and states, and who steps parameters that are stored so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from .contests import CONTESTS, OURS, TRAINED
from .others import OTHERS, Factory, make


@dataclass(frozen=True)
class Way:
    """One way to store.

    Attributes:
        param, grad: dtypes of parameters and gradients.
        options: of this package's optimizer.
    """

    name: str
    param: torch.dtype
    grad: torch.dtype
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def optimizer(self) -> Factory:
        """This package's optimizer that stores so."""
        return partial(CONTESTS[TRAINED].row.optimizer, **self.options)


def _ways(name: str, param: torch.dtype, grad: torch.dtype, **options: Any) -> list[Way]:
    """A way whose states have the bits that they have by default, and with 16 and 8 bits."""
    fewer = [
        Way(f"{name}, {bits}-bit states", param, grad, {**options, "state_bits": bits})
        for bits in (16, 8)
    ]
    return [Way(name, param, grad, options), *fewer]


_WIDE, _HALF = torch.float32, torch.bfloat16
_MASTER = {"master_weights": True, "state_bits": 32}

PLAIN, WITH_MASTER = "float32", "bfloat16 with master"
ROUNDED, STOCHASTIC = "bfloat16", "bfloat16, stochastic rounding"
ROUNDED_TO_FLOAT16 = "float16"
MIXED = "float32, bfloat16 gradient"

WAYS = {
    way.name: way
    for way in (
        *_ways(PLAIN, _WIDE, _WIDE),
        *_ways(MIXED, _WIDE, _HALF),
        *_ways(WITH_MASTER, _HALF, _HALF, **_MASTER),
        *_ways(ROUNDED, _HALF, _HALF),
        *_ways(STOCHASTIC, _HALF, _HALF, stochastic_rounding=True),
        *_ways(ROUNDED_TO_FLOAT16, torch.float16, torch.float16),
    )
}

# Where a float32 optimizer is kept beside a model in bfloat16, whose gradients are bfloat16.
OFFLOADED = (PLAIN, *(name for name in WAYS if name.startswith((MIXED, WITH_MASTER))))


class Converting:
    """A step of float32 copies, for an optimizer that steps no other format with a float32 master.

    Each step converts the gradients, steps, and writes the parameters back where they have another
    dtype: what offloading adds to a step.
    """

    def __init__(self, groups: list[dict[str, Any]], theirs: Factory) -> None:
        self._pairs = [(param, _in_float32(param)) for g in groups for param in g["params"]]
        copies = iter([copy for _, copy in self._pairs])
        self._optimizer = theirs(
            [{**group, "params": [next(copies) for _ in group["params"]]} for group in groups]
        )
        self.state = self._optimizer.state
        self.param_groups = self._optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Converts, steps, and converts back."""
        for param, copy in self._pairs:
            assert copy.grad is not None
            assert param.grad is not None
            copy.grad.copy_(param.grad)
        self._optimizer.step()
        for param, copy in self._pairs:
            if param.dtype != copy.dtype:
                param.copy_(copy)


def _in_float32(param: torch.Tensor) -> torch.Tensor:
    """The parameter, or a copy if it has another dtype, with memory for a gradient."""
    copy = param.detach().to(torch.float32)
    copy.grad = torch.empty_like(copy)
    return copy


_TORCHS = partial(CONTESTS[TRAINED].row.torch_twin[0], fused=True)
_DECAY = {"weight_decay": 0.01}
_DEEPSPEED = partial(make, "deepspeed.ops.adam", "DeepSpeedCPUAdam", _DECAY)
_DEEPSPEED_16 = partial(
    make, "deepspeed.ops.adam", "DeepSpeedCPUAdam", {**_DECAY, "fp32_optimizer_states": False}
)
_TORCHAO = ("torchao.optim", "AdamW8bit")


def _of(peer: str) -> Callable[..., Any]:
    factory = OTHERS[peer].factory(TRAINED)
    assert factory is not None
    return factory


# Who steps what is stored in a way, or comes nearest. DeepSpeed takes the memory of gradients for
# the parameter's dtype without asking for theirs. optimi keeps what bfloat16 loses by itself.
THEIRS: dict[str, dict[str, Factory]] = {
    "fused": {PLAIN: _TORCHS, ROUNDED: _TORCHS, ROUNDED_TO_FLOAT16: _TORCHS},
    "deepspeed": {
        PLAIN: _DEEPSPEED,
        MIXED: partial(Converting, theirs=_DEEPSPEED),
        WITH_MASTER: partial(Converting, theirs=_DEEPSPEED),
        ROUNDED: _DEEPSPEED_16,
    },
    "optimi": {STOCHASTIC: _of("optimi")},
    "bitsandbytes-8bit": {f"{PLAIN}, 8-bit states": _of("bitsandbytes-8bit")},
    "torchao-8bit": {
        f"{PLAIN}, 8-bit states": _of("torchao-8bit"),
        f"{STOCHASTIC}, 8-bit states": partial(
            make, *_TORCHAO, {**_DECAY, "bf16_stochastic_round": True}
        ),
    },
}

# They take gradients for memory to compute in, and need gradients of their own.
OVERWRITING = ("optimi",)

# Torch's fused step in float32: what everyone has today, and all ways are compared with.
BASELINE = "fused"


def contestants(names: Iterable[str], peers: Iterable[str]) -> dict[tuple[str, str], Factory]:
    """Everyone who is timed, by way and who: this package, the baseline, and the peers named."""
    asked = (BASELINE, *(peer for peer in peers if peer != BASELINE))
    found: dict[tuple[str, str], Factory] = {}
    for name in names:
        found[name, OURS] = WAYS[name].optimizer
        for peer in asked:
            if name in THEIRS.get(peer, {}):
                found[name, peer] = THEIRS[peer][name]
    return found


def is_low_bit(peer: str) -> bool:
    """Whether a peer rounds its states to 8 bits in a way of its own."""
    return peer in OTHERS and OTHERS[peer].low_bit
