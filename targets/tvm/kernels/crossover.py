"""Crossovers: sizes from which on a program computes in another way.

The size is known only at run time, so the crossover is a parameter of the program. The artifact holds an estimate;
``moec tune`` replaces it by a measured number without a change of code.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Crossover:
    """Number of ``unit`` from which on the next way to compute is taken, at most ``highest``.

    ``name`` identifies all that decides the times of both ways; products of equal name share one number."""

    name: str
    unit: str
    estimate: int
    highest: int | None = None
