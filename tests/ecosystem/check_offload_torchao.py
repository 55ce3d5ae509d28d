"""torchao's CPUOffloadOptimizer, which wants a GPU: here with plain streams and plain memory."""

from __future__ import annotations

import contextlib
import copy

import numpy as np
import pytest
import torch
from torchao.optim import CPUOffloadOptimizer, cpu_offload

import fusedopt
from code_blocks import ROOT, file_of
from helpers import bits

GUIDE = ROOT / "docs" / "guides" / "offloaded-training.md"
OPTIONS = {"lr": 0.01, "master_weights": True, "state_bits": 8}


class Stream:
    """A stream and its event: everything is done when it is asked for."""

    def wait_stream(self, other):
        pass

    def record_event(self):
        return self

    def synchronize(self):
        pass


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch):
    empty_like = torch.empty_like
    monkeypatch.setattr(cpu_offload, "get_available_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(
        torch, "empty_like", lambda *args, pin_memory=False, **how: empty_like(*args, **how)
    )


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)
    ).bfloat16()


def offloaded(model, **options):
    return CPUOffloadOptimizer(
        model.parameters(), fusedopt.AdamW, minimal_size=0, **OPTIONS, **options
    )


def train(model, optimizer, steps):
    for step in steps:
        optimizer.zero_grad()
        inputs = torch.randn(8, 64, generator=torch.Generator().manual_seed(step)).bfloat16()
        model(inputs).float().square().mean().backward()
        optimizer.step()


def assert_same_bits(model, other):
    for param, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert np.array_equal(bits(param), bits(expected))


def test_the_script_of_the_guide_runs():
    names = {}
    exec(file_of(GUIDE, "torchao_offload.py").replace('"cuda"', '"cpu"'), names)
    assert {p.numel() for p in names["optimizer"].optim_dict} == {8192, 128, 64}
    for device_param, optimizer in names["optimizer"].optim_dict.items():
        (param,) = optimizer.param_groups[0]["params"]
        assert param.dtype == param.grad.dtype == torch.bfloat16
        assert optimizer.state[param]["param_remainder"].dtype == torch.int16
        assert torch.equal(param, device_param)


@pytest.mark.parametrize("offload_gradients", [False, True])
def test_steps_are_those_of_one_plain_optimizer(offload_gradients):
    model, plain = network(), network()
    train(model, offloaded(model, offload_gradients=offload_gradients), range(5))
    train(plain, fusedopt.AdamW(plain.parameters(), **OPTIONS), range(5))
    assert_same_bits(model, plain)
    assert not torch.equal(model[0].weight, network()[0].weight)


def test_resumes_exactly():
    whole = network()
    optimizer = offloaded(whole)
    train(whole, optimizer, range(3))
    weights, states = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    resumed = network(seed=1)
    resumed.load_state_dict(weights)
    after = offloaded(resumed)
    after.load_state_dict(states)
    train(resumed, after, range(3, 5))
    train(whole, optimizer, range(3, 5))
    assert_same_bits(resumed, whole)
