"""Where one way to compute gives way to the next, by a size that is known when the program runs: a number that is a
parameter of the program. The artifact holds an estimate, ``moec tune`` measures it, and no code changes."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Crossover:
    """From how many ``unit`` on the next way is taken. ``name`` identifies what decides the times of both ways:
    products of equal name share the number. It counts as ``highest`` where it is higher."""

    name: str
    unit: str
    estimate: int
    highest: int | None = None
