"""Evidence is bounded: equal decisions are one record, long names are cut, and what is left out is counted."""

import math

import pytest

from moec.passes.framework.base import Report, Unraised
from moec.passes.framework.evidence import (
    MOST_ATTEMPTS,
    MOST_CHARACTERS,
    MOST_DECISIONS,
    MOST_MISSES,
    SMALLEST,
    Attempt,
    DecisionRecord,
    SideRecord,
    cut,
    grouped,
    recorded,
)

TAKEN, OPEN = SideRecord("input 0 < 0", "trial", "ties"), SideRecord("input 0 > 0", "unseen")


def decision(number: int, *sides: SideRecord, operator: str = "Relu") -> DecisionRecord:
    return DecisionRecord(f"node {number}", operator, sides)


def test_decisions_whose_sides_were_seen_alike_are_one_record():
    alike, left_out = grouped([decision(0, TAKEN), decision(1, TAKEN), decision(2, TAKEN, operator="Abs")])
    assert [(record.node, record.others) for record in alike] == [("node 0", 1), ("node 2", 0)]
    assert left_out == 0


def test_a_side_that_no_trial_took_is_never_left_out():
    many = [decision(number, SideRecord(str(number), "trial", "ties")) for number in range(3 * MOST_DECISIONS)]
    kept, left_out = grouped([*many, decision(-1, TAKEN, OPEN)])
    assert kept[0].node == "node -1" and kept[0].is_open
    assert (len(kept), left_out) == (MOST_DECISIONS, 2 * MOST_DECISIONS + 1)


@pytest.mark.parametrize(
    ("difference", "expected"), [(0.0, SMALLEST), (3e-16, SMALLEST), (0.1234, 0.12), (math.inf, None), (math.nan, None)]
)
def test_rounding_is_not_recorded_and_what_has_no_bound_is_none(difference, expected):
    assert recorded(difference) == expected


def test_long_names_are_cut_and_short_ones_are_not():
    assert cut("a" * MOST_CHARACTERS) == "a" * MOST_CHARACTERS
    assert len(cut("a" * 10_000)) == MOST_CHARACTERS


def test_attempts_of_thousands_of_near_misses_are_bounded():
    report = Report()
    attempts = [Attempt("probing", str(number)) for number in range(MOST_ATTEMPTS + 2)]
    for number in range(2 * MOST_MISSES):
        report.add_unraised(Unraised(str(number), "why"), [*attempts, *attempts])
    first, last = report.unraised[0], report.unraised[-1]
    assert (len(first.attempts), first.attempts_left_out) == (MOST_ATTEMPTS, 2)
    assert (last.attempts, last.attempts_left_out) == ((), MOST_ATTEMPTS + 2)
