"""ONNX's own tests of operators, against the checked-in table."""

from __future__ import annotations

import random

import onnx
import pytest

from . import table
from .cases import Case, all_cases
from .outcome import Outcome
from .sweep import sweep

SAMPLE = 4


def check(cases: list[Case]) -> None:
    """No case is worse than in the table: one that passed passes, and all others are refused."""
    known = table.read()
    worse = {
        name: outcome
        for name, outcome in sweep(cases).items()
        if outcome.status not in ("pass", known.get(name, Outcome("pass")).status)
    }
    assert not worse


def test_a_sample() -> None:
    """Another one for each version of onnx."""
    cases = all_cases()
    names = random.Random(onnx.__version__).sample(sorted(cases), SAMPLE)
    check([cases[name] for name in names])


@pytest.mark.nightly
def test_all() -> None:
    check(list(all_cases().values()))
