"""Edits make the new sequence of the old one, and keep what both have."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moec.exploring.edits import edits


def applied(old, changes):
    results, at = [], 0
    for place, removed, added in changes:
        results += [*old[at:place], *added]
        at = place + removed
    return [*results, *old[at:]]


patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault of what is tested."""


@patient
@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=12))
def test_edits_make_the_new_sequence(old, new):
    assert applied(old, edits(old, new)) == new


@patient
@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)))
def test_elements_that_both_have_once_in_the_same_order_stay(old, new):
    changes = edits(sorted(old), sorted(new))
    assert sum(removed for _, removed, _ in changes) == len(old - new)
    assert sorted(each for _, _, added in changes for each in added) == sorted(new - old)


def test_equal_sequences_have_no_edits():
    assert edits([1, 1, 2], [1, 1, 2]) == []
