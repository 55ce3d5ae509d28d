"""The compiled kernels, run instruction by instruction: the reference's bits, and no wrong access.

A part of ``check_ptx.py``, which has all of it: every kernel once.
"""

from __future__ import annotations

import pytest

from compiled_cuda import KERNELS
from compiled_scenarios import ARCHITECTURES, KINDS, ROW_OF_RULE, scenarios_of
from runs import check

RULES = list(ROW_OF_RULE)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("rule", RULES)
def test_bits_of_the_reference(rule, kind):
    n = RULES.index(rule) + list(KINDS).index(kind)
    every = scenarios_of(ARCHITECTURES[n % len(ARCHITECTURES)], ROW_OF_RULE[rule], kind)
    check(every[n // 2 % len(every)])


def test_a_table_in_memory():
    (_, scenario) = scenarios_of(ARCHITECTURES[0], ROW_OF_RULE["momentum"], "memory")
    check(scenario)
