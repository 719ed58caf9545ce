"""Parameters that are too many to run every time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def sampled(first: Iterable[Any], second: Iterable[Any], share: int) -> list[Any]:
    """All pairs, for ``parametrize``. Every value of ``second`` stays with one in ``share`` of ``first``, in turns;
    pairs in between are left to ``-m nightly``. Values may be made by ``pytest.param``: marks and ids are kept."""
    pairs = []
    for (i, value), (j, other) in itertools.product(enumerate(first), enumerate(second)):
        parts = [_parameter(value), _parameter(other)]
        marks = [mark for part in parts for mark in part.marks]
        if (i + j) % share:
            marks.append(pytest.mark.nightly)
        name = "-".join(str(part.id or part.values[0]) for part in parts)
        pairs.append(pytest.param(*(part.values[0] for part in parts), marks=marks, id=name))
    return pairs


def thinned(names: str | tuple[str, ...], values: Iterable[Any], share: int, **options: Any) -> pytest.MarkDecorator:
    """``parametrize`` of which one in ``share`` of the values always runs, the first among them; the others are left
    to ``-m nightly``. ``options``: those of ``parametrize``."""
    several = not isinstance(names, str) or "," in names
    parameters = []
    for i, value in enumerate(values):
        marked = hasattr(value, "marks")
        parts = value.values if marked else value if several else (value,)
        marks = [*(value.marks if marked else ()), *([pytest.mark.nightly] if i % share else [])]
        parameters.append(pytest.param(*parts, marks=marks, id=value.id if marked else None))
    return pytest.mark.parametrize(names, parameters, **options)


def _parameter(value: Any) -> Any:
    return value if hasattr(value, "marks") else pytest.param(value)
