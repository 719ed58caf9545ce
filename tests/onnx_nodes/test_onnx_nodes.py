"""ONNX's own tests of operators, against the checked-in table."""

from __future__ import annotations

import random

import onnx
import pytest

from . import table
from .cases import Case, all_cases, cases_of, modules
from .outcome import Outcome
from .sweep import sweep

SAMPLE = 4


def check(cases: list[Case], workers: int) -> None:
    """No case is worse than in the table: one that passed passes, and all others are refused."""
    recorded = table.read()
    worse = {
        name: outcome
        for name, outcome in sweep(cases, workers).items()
        if outcome.status not in ("pass", recorded.get(name, Outcome("pass")).status)
    }
    assert not worse


def test_a_sample() -> None:
    """Another one for each version of onnx. Most of the time would be onnx's, which computes all cases of a module."""
    drawn, sample = random.Random(onnx.__version__), []
    for module in drawn.sample(modules(), len(modules())):
        if cases := cases_of(module):
            sample.append(drawn.choice(list(cases.values())))
        if len(sample) == SAMPLE:
            break
    assert len(sample) == SAMPLE
    check(sample, workers=1)


@pytest.mark.nightly
def test_all() -> None:
    check(list(all_cases().values()), workers=2)
