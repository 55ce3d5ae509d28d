"""Clipped steps of the compiled kernels, run instruction by instruction: one of every kind.

``check_ptx.py`` has them for every rule.
"""

from __future__ import annotations

import pytest

from compiled_norms import MIXES, check_clipped
from compiled_scenarios import ARCHITECTURES, ROW_OF_RULE


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", MIXES)
def test_bits_of_the_cpu(kind, capturable):
    number = list(MIXES).index(kind)
    architecture = ARCHITECTURES[number % len(ARCHITECTURES)]
    rule = ("adam", "momentum")[number // 2]
    check_clipped(architecture, ROW_OF_RULE[rule], kind, 2 * number + capturable)
