"""Products of parameters that are too many to run every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def sampled(first: Iterable[Any], second: Iterable[Any], share: int) -> list[Any]:
    """All pairs, for ``parametrize``. Every value of ``second`` stays with one in ``share`` of ``first``, in turns;
    pairs in between are left to ``-m nightly``. Values may be made by ``pytest.param``: marks and ids are kept."""
    pairs = []
    for (i, one), (j, other) in itertools.product(enumerate(first), enumerate(second)):
        parts = [_parameter(one), _parameter(other)]
        marks = [mark for part in parts for mark in part.marks]
        if (i + j) % share:
            marks.append(pytest.mark.nightly)
        name = "-".join(str(part.id or part.values[0]) for part in parts)
        pairs.append(pytest.param(*(part.values[0] for part in parts), marks=marks, id=name))
    return pairs


def _parameter(value: Any) -> Any:
    return value if hasattr(value, "marks") else pytest.param(value)
