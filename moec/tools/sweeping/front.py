"""Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def on_front(points: Sequence[tuple[float | None, float]]) -> list[bool]:
    """Whether each of the points (cost, loss) is beaten by no other. A point beats another if neither its cost nor its
    loss is larger, and they differ. An unknown cost, or a NaN loss, is never on the front."""
    valid = [(cost, loss) for cost, loss in points if cost is not None and not math.isnan(loss)]
    return [
        cost is not None and not math.isnan(loss) and not any(_beats(other, (cost, loss)) for other in valid)
        for cost, loss in points
    ]


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and other[0] <= own[0] and other[1] <= own[1]
