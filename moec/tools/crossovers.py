"""Crossovers, on any machine: measurements of two ways for growing rows, and the number of rows at which to switch."""

from __future__ import annotations

import math

from moec.common.crossovers import Point
from moec.runtime.tuning import ALWAYS, NEVER

FIXED_SIZES = "all sizes of the model's inputs are fixed; expected one to vary the number of rows by"


def crossover_of(points: list[Point]) -> int:
    """Find the crossover that costs least over all points, where a cost is relative to the faster way."""

    def cost(crossover: int) -> float:
        return sum(
            (point.second if point.rows >= crossover else point.first) / min(point.first, point.second)
            for point in points
        )

    candidates = sorted({ALWAYS, NEVER, *(math.ceil(point.rows) for point in points)})
    return min(candidates, key=cost)
