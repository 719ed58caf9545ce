"""Limits of a loop whose end is known only when a model runs.

A model's file may contain a loop that never ends, or whose states grow forever: its run then ends with an error.
"""

from __future__ import annotations

MAXIMUM_STEPS = 1 << 20
"""A step takes at least about 10 us: a loop with an almost empty body ends within a minute."""
MAXIMUM_GROWTH = 1 << 30
"""Bytes by which a loop's states may grow beyond their size before the first step. Slices made by the steps count, too,
if the loop has no other end than a condition."""
MAXIMUM_CARRIED = 1 << 38
"""Sum of this growth over all steps, each of which writes the states again: half a minute's worth."""


class LoopLimit:
    """The limits of one loop, counted along with its steps. ``carried``: bytes before the first step."""

    def __init__(self, carried: int) -> None:
        self._first, self._all, self._steps = carried, 0, 0

    def step(self, carried: int, slices: int = 0) -> None:
        """Count a step that begins with ``carried`` bytes of states and ``slices`` bytes of slices. Raises ValueError
        beyond a limit."""
        self._steps += 1
        growth = max(carried - self._first, 0)
        self._all += growth
        if self._steps > MAXIMUM_STEPS:
            problem = f"goes on behind its step {MAXIMUM_STEPS}"
        elif growth + slices > MAXIMUM_GROWTH or self._all > MAXIMUM_CARRIED:
            problem = f"holds {carried + slices} bytes in its step {self._steps}, and {self._first} in its first"
        else:
            return
        raise ValueError(
            f"a loop {problem}; expected it to end before: run the model on shorter inputs, or mend the condition that "
            "ends the loop"
        )
