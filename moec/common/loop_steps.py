"""The most steps that a loop may take whose end is known only when a model runs.

A model's file may say that a loop goes on for ever: its run ends with an error instead."""

from __future__ import annotations

MAXIMUM_STEPS = 1 << 20
"""A step takes some 10 us at least: a loop whose body does next to nothing ends within a minute."""


def check_steps(count: int) -> None:
    """Raise ValueError where ``count`` steps are more than :data:`MAXIMUM_STEPS`."""
    if count > MAXIMUM_STEPS:
        raise ValueError(
            f"a loop goes on behind its step {MAXIMUM_STEPS}; expected it to end by then: run the model on shorter "
            "inputs, or mend the condition that ends the loop"
        )
