"""Damaged artifacts: a sample always, 2,000 nightly."""

from __future__ import annotations

import pathlib

import pytest

from tests.instruments.artifact_edits import Edit
from tests.instruments.artifacts import Mutant, make_base, shrink, sweep


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> pathlib.Path:
    return make_base(tmp_path_factory.mktemp("base"))


def assert_right_or_refused(base: pathlib.Path, count: int, seed: int) -> None:
    counts, failures = sweep(base, count, seed)
    assert not failures, "\n".join(failures)
    assert counts["refused"] > counts["pass"] / 4 > 0  # edits matter, and not all of them


def test_a_sample(base):
    assert_right_or_refused(base, 40, seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(2, 12))
def test_two_thousand(base, seed):
    assert_right_or_refused(base, 200, seed)


def test_failures_shrink_to_the_change_that_matters(base):
    harmless, harmful = Edit("set", ("remarks",), []), Edit("delete", ("programs", 0, "objects", 0))
    assert shrink(Mutant(str(base), (harmless, harmful), False), ("refused", "")) == Mutant(
        str(base), (harmful,), False
    )
