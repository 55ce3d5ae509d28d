"""The processes that checks of ranks run in tell what goes wrong there, and go on."""

from __future__ import annotations

import pytest

import failing_ranks


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (failing_ranks.raises, r"rank 1: (.*\n)*ValueError: of rank 1"),
        (failing_ranks.crashes, r"rank 1: it crashed"),
    ],
)
def test_what_goes_wrong_is_said(run, check, said):
    run(failing_ranks.sums, 2)
    with pytest.raises(AssertionError, match=said):
        run(check, 2)
    run(failing_ranks.sums, 2)
