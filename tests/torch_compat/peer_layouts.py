"""Checkpoints of other packages, made by hand from plain tensors, and from checkpoints of ours."""

from __future__ import annotations

import numpy as np
import torch

from fusedopt.reference.codes import code_values

SIZES = (5120, 300)
MOMENTS = {"exp_avg": True, "exp_avg_sq": False}
NESTED = "__bnb_optimizer_quant_state__"


def parameters(dtype=torch.float32, sizes=SIZES):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in sizes]


def train(optimizer, steps):
    for step in range(steps):
        for param in optimizer.param_groups[0]["params"]:
            generator = torch.Generator().manual_seed(step)
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        optimizer.step()
    return optimizer.param_groups[0]["params"]


def table(signed, ulps=0, seed=0):
    """The values of the codes, each but zero moved by up to so many units in the last place."""
    values = code_values(signed).copy()
    moved = values.view(np.int32) + np.random.default_rng(seed).integers(-ulps, ulps + 1, 256)
    exact = np.where(values == 0, values, moved.astype(np.int32).view(np.float32))
    if ulps:
        exact[200] = (values[200:201].view(np.int32) + np.int32(ulps)).view(np.float32)[0]
    return torch.from_numpy(exact)


def decoded(codes, values, scales, block=256):
    """The numbers of codes, in NumPy."""
    flat = np.repeat(scales.numpy(), block)[: codes.numel()]
    numbers = values.numpy()[codes.flatten().numpy()] * flat
    return numbers.reshape(tuple(codes.shape))


def random_codes(numel, signed, block=256, values=None, seed=0):
    """One state in 8 bits as bitsandbytes has it: codes, table, scales."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (numel,), dtype=torch.uint8, generator=generator)
    scales = torch.rand(-(-numel // block), generator=generator) + 0.1
    return codes, table(signed) if values is None else values, scales


GROUP = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-7, "weight_decay": 0.1}
OF_TWO_STATES = {**GROUP, "alpha": 0.0, "t_alpha": None, "t_beta3": None}


def bitsandbytes(states, group, nested=True):
    """A checkpoint in its layout.

    Args:
        states: for each parameter what stands for ``state1`` and so on: a float32 tensor, or codes
            with table and scales; None for a parameter that has not been stepped.
        group: the options of the only group.
        nested: as later releases have it, whose states lie in a dictionary of their own.
    """
    state = {}
    for index, of_param in enumerate(states):
        if of_param is None:
            continue
        parts = {}
        for number, stored in enumerate(of_param, 1):
            if isinstance(stored, torch.Tensor):
                parts[f"state{number}"] = stored
            else:
                names = (f"state{number}", f"qmap{number}", f"absmax{number}")
                parts |= dict(zip(names, stored, strict=True))
        state[index] = {"step": 3, **({NESTED: parts} if nested else parts)}
    return {"state": state, "param_groups": [{**group, "params": [*range(len(states))]}]}


class OptimState(torch.Tensor):
    """What torchao makes of a state: a wrapper of the tensors that hold its numbers."""

    @staticmethod
    def __new__(cls, codes, scale, qmap=None, shape=None):
        shape = codes.shape if shape is None else shape
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32)

    def __init__(self, codes, scale, qmap=None, shape=None):
        self.codes, self.scale, self.qmap = codes, scale, qmap
        self.block_size = self.numel() // scale.numel()

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} of a tensor that only torchao knows")

    def dequantize(self, output_dtype=None):
        """With two codes of 4 bits in a byte, if there are half as many bytes as elements."""
        codes = self.codes.flatten()
        if codes.numel() != self.numel():
            codes = torch.stack([codes >> 4, codes & 15], dim=-1).flatten()
        numbers = self.qmap[codes.int()].view(-1, self.block_size) * self.scale.view(-1, 1)
        return numbers.view(self.shape).to(output_dtype or torch.float32)


def torchao(states, step=3.0):
    """A checkpoint in its layout: for each parameter tensors under the names of torch's."""
    group = {**GROUP, "lr": torch.tensor(0.01), "amsgrad": False}
    return {
        "state": {i: {"step": torch.tensor(step), **named} for i, named in enumerate(states)},
        "param_groups": [{**group, "params": [*range(len(states))]}],
    }


def two_states(ulps=0, block=256, seed=0):
    """The states of a large and of a small parameter, of which the large one's are codes."""
    coded = [
        random_codes(SIZES[0], signed, block, table(signed, ulps), seed)
        for signed in MOMENTS.values()
    ]
    small = torch.rand(2, SIZES[1], generator=torch.Generator().manual_seed(1))
    return [coded, [*small]]


def as_torchao(states):
    """The same states as torchao would have them."""
    return torchao(
        [
            {
                name: stored
                if isinstance(stored, torch.Tensor)
                else OptimState(stored[0], stored[2], stored[1])
                for name, stored in zip(MOMENTS, of_param, strict=True)
            }
            for of_param in states
        ]
    )
