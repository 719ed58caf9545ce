"""Products of parameters that are too many to run every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def sampled(first: Iterable[Any], second: Iterable[Any], share: int) -> list[Any]:
    """All pairs, for ``parametrize``. Every value of ``second`` stays with one in ``share`` of ``first``, in turns;
    pairs in between are left to ``-m nightly``."""
    firsts: Sequence[Any] = list(first)
    pairs = itertools.product(range(len(firsts)), enumerate(second))
    return [
        pytest.param(firsts[i], value, marks=() if (i + j) % share == 0 else pytest.mark.nightly)
        for i, (j, value) in pairs
    ]
