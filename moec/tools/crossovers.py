"""What tuning finds on any machine: measurements of two ways by growing rows, and the number of rows to change at."""

from __future__ import annotations

import dataclasses
import math

from moec.runtime.tuning import ALWAYS, NEVER

FIXED_SIZES = "all sizes of the model's inputs are fixed; expected one to vary the number of rows by"


@dataclasses.dataclass(frozen=True)
class Point:
    """Rows per expert, and the seconds of a kernel the first and the second way; on a GPU tokens, and those of the
    model."""

    rows: float
    first: float
    second: float


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One crossover: the kernels that read it, its value before and as measured, and the measurements. ``rows`` are
    tokens on a GPU."""

    name: str
    kernels: list[str]
    before: int
    rows: int
    points: list[Point]


def crossover_of(points: list[Point]) -> int:
    """The number of rows that, as the crossover, costs least over all points, each measured by its faster way."""

    def cost(crossover: int) -> float:
        return sum(
            (point.second if point.rows >= crossover else point.first) / min(point.first, point.second)
            for point in points
        )

    candidates = sorted({ALWAYS, NEVER, *(math.ceil(point.rows) for point in points)})
    return min(candidates, key=cost)
