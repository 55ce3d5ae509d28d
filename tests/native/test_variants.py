"""Which kernel a rule asks for: one that there is, or an error ahead of the step."""

from __future__ import annotations

from helpers import run_native


def test_a_variant_without_kernels_is_an_error_that_names_the_rule(tmp_path):
    assert run_native("wrong_variant.cpp", tmp_path) == [
        "2",  # above the bit that all rules share
        "rule 'wrong' has variants below 2, not 2",
        "rule 'wrong' has variants below 2, not 7",
    ]
