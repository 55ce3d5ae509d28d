"""Parameters and states in fewer bytes: the reference's bits, with any instruction set and cut."""

from __future__ import annotations

import pytest
import torch

import fusedopt
from fusedopt import _native
from fusedopt.checking.cases import CASES
from fusedopt.checking.stored import ON_CPU, STORAGES, verify_storage


@pytest.mark.parametrize("storage", [*STORAGES, *ON_CPU], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_of_the_reference(case, storage):
    isas = _native.available_isas()[::-1]
    for result in verify_storage(case, storage, isas, [1, 2], steps=3):
        assert result.elements > 0
        assert result.mismatches == 0, result.first_mismatch


def test_options_are_keys_of_a_group_only_away_from_their_defaults():
    param = torch.nn.Parameter(torch.ones(3))
    assert "state_bits" not in fusedopt.Adam([param]).param_groups[0]
    group = fusedopt.Adam([{"params": [param], "seed": 3}], state_bits=16).param_groups[0]
    assert (group["state_bits"], group["seed"]) == (16, 3)
