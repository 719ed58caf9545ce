"""Limits of a loop whose end is known only when a model runs.

A model's file may say that a loop goes on, or that what it carries grows, for ever: its run ends with an error."""

from __future__ import annotations

MAXIMUM_STEPS = 1 << 20
"""A step takes some 10 us at least: a loop whose body does next to nothing ends within a minute."""
MAXIMUM_GROWTH = 1 << 30
"""Bytes by which what a loop carries may be larger than before its first step, together with what the steps of a loop
made that has no other end than a condition."""
MAXIMUM_CARRIED = 1 << 38
"""Bytes by which what is carried may be larger, of all steps together, each of which writes it anew: half a minute's
worth."""


class LoopLimit:
    """The limits of one loop, counted along with its steps. ``carried``: bytes before the first step."""

    def __init__(self, carried: int) -> None:
        self._first, self._all, self._steps = carried, 0, 0

    def step(self, carried: int, made: int = 0) -> None:
        """Count a step that begins with so many bytes, and so many made by those before it. Raises ValueError beyond a
        limit."""
        self._steps += 1
        growth = max(carried - self._first, 0)
        self._all += growth
        if self._steps > MAXIMUM_STEPS:
            problem = f"goes on behind its step {MAXIMUM_STEPS}"
        elif growth + made > MAXIMUM_GROWTH or self._all > MAXIMUM_CARRIED:
            problem = f"holds {carried + made} bytes in its step {self._steps}, and {self._first} in its first"
        else:
            return
        raise ValueError(
            f"a loop {problem}; expected it to end before: run the model on shorter inputs, or mend the condition that "
            "ends the loop"
        )
