"""The compiled kernels, run instruction by instruction: every rule, option, dtype, layout, table.

``make ptx-check``, which needs no GPU. The name of the file keeps it out of a plain ``pytest``. The
architectures take turns: each runs all kernels, options and ways to hand them over, and every
second pair of these. Each kernel has to derive scalars in both types, and the host does as well.
"""

from __future__ import annotations

import pytest

from compiled_cuda import KERNELS, derived_in, kernel_of
from compiled_norms import MIXES, check_clipped
from compiled_scenarios import ARCHITECTURES, KINDS, ROW_OF_RULE, share_of
from runs import check
from touch import TOUCH


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("rule", ROW_OF_RULE)
def test_bits_of_the_reference(rule, architecture, capsys):
    """All runs of a rule; what its kernels have executed and derived is shown."""
    for kind in KINDS:
        for scenario in share_of(architecture, ROW_OF_RULE[rule], kind):
            print(scenario)  # of the failing one pytest shows it
            check(scenario)
    first = len(ARCHITECTURES) * list(ROW_OF_RULE).index(rule) + ARCHITECTURES.index(architecture)
    for number, kind in enumerate(MIXES):
        if rule != TOUCH.rule:
            check_clipped(architecture, ROW_OF_RULE[rule], kind, first + number)
    capsys.readouterr()
    for kind in KERNELS:
        kernel = kernel_of(architecture, rule, kind)
        coverage, types = kernel.coverage(), sorted(derived_in[kernel])
        ran = f"{coverage.blocks_run} of {coverage.blocks} basic blocks"
        print(f"{architecture} {rule}, {kind} table: {ran}; scalars derived: {', '.join(types)}")
        assert coverage.blocks_run > coverage.blocks / 2
        assert types == ["float"] if kind == "any" else ["double", "float"]
