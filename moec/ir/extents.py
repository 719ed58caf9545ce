"""Bounds of numbers that count: sizes, places, and sums, of which there are as many terms as an axis is long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Bounds = tuple[Any, Any]
PLACES = frozenset({"ArgMax", "ArgMin", "NonZero", "Range", "Shape", "Size", "TopK"})
SUMS = frozenset({"CumSum", "ReduceSum"})


def with_sizes(operator: str, inputs: Sequence[Bounds], result: Bounds, most: float) -> Bounds:
    """The bounds of an operator's ``result`` where no axis is longer than ``most``."""
    if math.isinf(most):
        return result
    low, high = result
    if operator in PLACES:
        return low, np.minimum(high, most)
    if operator in SUMS:
        least, largest = float(np.min(inputs[0][0])), float(np.max(inputs[0][1]))
        return max(low, min(0.0, least * most)), min(high, max(0.0, largest * most))
    return result


def range_of(start: Bounds, limit: Bounds, delta: Bounds) -> Bounds:
    """The bounds of a Range: it lies between its start and its limit."""
    if delta[0] > 0:
        return start[0], max(start[0], limit[1])
    return (min(start[1], limit[0]), start[1]) if delta[1] < 0 else (-math.inf, math.inf)
