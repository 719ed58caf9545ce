"""Writers that are killed: a few always, 80 nightly."""

from __future__ import annotations

import pytest

from tests.instruments.kills import sweep


def test_a_sample(tmp_path):
    assert sweep(2, 1, tmp_path) == []


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [2, 3])
def test_eighty(tmp_path, seed):
    assert sweep(40, seed, tmp_path) == []
