"""DeepSpeed's ZeRO-Offload, with its accelerator for CPUs, in two processes."""

from __future__ import annotations

import pytest
import torch.multiprocessing

import deepspeed_workers as workers
from code_blocks import ROOT, file_of, torchrun

GUIDE = ROOT / "docs" / "guides" / "offloaded-training.md"

each_stage = pytest.mark.parametrize("stage", [2, 3])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a check in two processes and raises what one of them raised."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start(function, *args):
        arguments = (function, 2, tmp_path / "rendezvous", *args)
        torch.multiprocessing.spawn(workers.in_group, arguments, nprocs=2)

    return start


def test_the_script_of_the_guide_runs(tmp_path):
    said = torchrun(file_of(GUIDE, "zero_offload.py"), tmp_path, DS_ACCELERATOR="cpu")
    assert said.count("(8288,) torch.float32 torch.float32 {") == 2
    assert said.count("'exp_avg_sq': torch.uint8") == 2


@each_stage
@pytest.mark.parametrize(
    "check", [workers.steps_are_those_of_a_plain_optimizer, workers.says_what_it_does_not_take]
)
def test_what_the_guide_says(run, check, stage):
    run(check, stage)


@each_stage
def test_resumes_exactly(run, stage, tmp_path):
    run(workers.resumes_exactly, stage, tmp_path)
