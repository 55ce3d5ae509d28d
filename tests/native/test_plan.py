"""The plan of a step (``csrc/core/plan.h``), tried without Python, torch and a real engine."""

from __future__ import annotations

from helpers import run_native

TWO_DEVICES = [
    "no conflict",
    "host prepares 2 updates in 1 rounds",
    "gpu prepares 1 updates in 1 rounds",
    "counts 1 1",  # nothing is counted before the engines have run
    "gpu runs 1 updates",  # first, because a launch may fail
]


def test_the_plan_of_a_step(tmp_path):
    assert run_native("plan_run.cpp", tmp_path) == [
        *TWO_DEVICES, "host runs 2 updates", "done, counts 2 2",
        *TWO_DEVICES, "failed, counts 1 1",
        "no conflict", "1 rounds",
        "no conflict", "2 rounds",  # overlapping parameters, one after the other
        "repeated: parameters 1 and 0", "2 rounds",
        "operands: parameters 1 and 1",
        "no conflict", "1 rounds",  # one gradient of two parameters is read twice
        "scaled: parameters 1 and 0",  # and may not be divided twice
        "shared 1, own 1",
        "options are there 1, in another list 0",
        "counts share memory 0",
        "step of 3 and ema_step of 5 share memory",
    ]  # fmt: skip
