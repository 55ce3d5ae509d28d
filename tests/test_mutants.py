"""The table of deliberate faults (``make mutants``) keeps up with the source."""

from __future__ import annotations

import pytest

from mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_can_be_applied(mutant):
    text = (ROOT / mutant.file).read_text()
    assert mutant.applied_to(text) != text


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
