"""Crossovers: numbers of rows from which a kernel takes its second way, and the measurements that give them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Point:
    """Seconds of the first and the second way at a number of ``rows``: of a kernel, by rows per expert, or on a GPU of
    the model, by tokens."""

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
