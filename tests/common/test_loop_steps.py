from __future__ import annotations

import pytest

from moec.common import loop_steps
from moec.common.loop_steps import MAXIMUM_CARRIED, MAXIMUM_GROWTH, LoopLimit


def test_a_loop_of_many_steps_that_carries_as_much_as_before(monkeypatch):
    monkeypatch.setattr(loop_steps, "MAXIMUM_STEPS", 1000)
    limit = LoopLimit(MAXIMUM_CARRIED)
    for _ in range(1000):
        limit.step(MAXIMUM_CARRIED)
    with pytest.raises(ValueError, match="goes on behind its step 1000"):
        limit.step(MAXIMUM_CARRIED)


def test_growth_at_once_and_in_all_steps_together():
    limit = LoopLimit(8)
    for _ in range(MAXIMUM_CARRIED // MAXIMUM_GROWTH):
        limit.step(8 + MAXIMUM_GROWTH)
    with pytest.raises(ValueError, match="holds 9 bytes in its step 257, and 8 in its first"):
        limit.step(9)
    with pytest.raises(ValueError, match="holds"):
        LoopLimit(8).step(9 + MAXIMUM_GROWTH)


def test_what_shrinks_does_not_pay_for_what_grows():
    limit = LoopLimit(MAXIMUM_CARRIED)
    limit.step(0)
    with pytest.raises(ValueError, match="holds"):
        limit.step(MAXIMUM_CARRIED + MAXIMUM_GROWTH + 1)


def test_what_steps_made_counts_once():
    limit = LoopLimit(8)
    for _ in range(1000):
        limit.step(8, MAXIMUM_GROWTH)
    with pytest.raises(ValueError, match=f"holds {9 + MAXIMUM_GROWTH} bytes in its step 1001, and 8 in its first"):
        limit.step(8, MAXIMUM_GROWTH + 1)
