"""Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def on_front(points: Sequence[tuple[float | None, float]]) -> list[bool]:
    """Which of the points (cost, loss) no other beats: none costs and loses as little, and less of one of both. A cost
    that is not known, or a loss that is no number, is never on the front."""
    known = [(cost, loss) for cost, loss in points if cost is not None and not math.isnan(loss)]
    return [
        cost is not None and not math.isnan(loss) and not any(_beats(other, (cost, loss)) for other in known)
        for cost, loss in points
    ]


def _beats(other: tuple[float, float], own: tuple[float, float]) -> bool:
    return other != own and other[0] <= own[0] and other[1] <= own[1]
