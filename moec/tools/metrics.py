"""Quality of a model's outputs, position by position; :mod:`moec.tools.evaluate` averages it.

A position is a token of a row, or the row itself: the output has a vector [classes] for it. All numbers are computed in
float64, log-softmax after subtraction of the largest logit. A NaN in a vector makes its numbers NaN.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from moec.common.divergence import divergences, log_softmax
from moec.common.errors import MoecError

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 21
"""Elements that are computed in float64 at a time."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """``of(found, other)`` computes a number for every vector of ``found`` [positions, classes], float64. ``other`` is
    what they are compared with: labels [positions], or with ``with_first`` the vectors of the first model."""

    of: Callable[[Array, Array], Array]
    with_first: bool = False
    exponential: bool = False
    """Whether the metric is the exponential of the mean instead of the mean."""
    more_is_better: bool = False


def _loss(logits: Array, labels: Array) -> Array:
    return -np.take_along_axis(log_softmax(logits), labels[:, None], axis=-1)[:, 0]


def _top1(logits: Array, labels: Array) -> Array:
    """Whether the largest logit is that of the label; the first counts of equal ones."""
    return np.where(np.isnan(logits).any(axis=-1), np.nan, logits.argmax(axis=-1) == labels)


def _cosine(actual: Array, first: Array) -> Array:
    """Cosine of two vectors: 1 if both are zero, 0 if only one is."""
    sizes = np.linalg.norm(actual, axis=-1), np.linalg.norm(first, axis=-1)
    product = sizes[0] * sizes[1]
    both = (sizes[0] == 0) & (sizes[1] == 0)
    return np.where(both, 1.0, np.where(product == 0, 0.0, (actual * first).sum(axis=-1) / product))


METRICS = {
    "loss": Metric(_loss),
    "perplexity": Metric(_loss, exponential=True),
    "top1": Metric(_top1, more_is_better=True),
    "kl": Metric(divergences, with_first=True),
    "cosine": Metric(_cosine, with_first=True, more_is_better=True),
}


def metric_named(name: str) -> Metric:
    """Look up a metric. Raises MoecError for an unknown name."""
    if name not in METRICS:
        raise MoecError(f"no metric {name!r}; expected {', '.join(METRICS)}")
    return METRICS[name]


def values_of(metric: Metric, actual: Array, other: Array, counted: Array) -> tuple[Array, Array]:
    """Sum the metric over the counted positions of each row. Returns the sums [rows] and the numbers of positions
    [rows], float64.

    ``actual`` is [rows, ..., classes], ``counted`` [rows, ...] selects positions, and ``other`` is as in
    :class:`Metric`, for the same positions.
    """
    classes = actual.shape[-1]
    vectors = actual.reshape(-1, classes)
    others = other.reshape(-1, classes) if metric.with_first else other.reshape(-1)
    chosen = np.flatnonzero(counted)
    values = np.zeros(counted.size)
    step = max(1, _BLOCK // max(1, classes))
    with np.errstate(all="ignore"):  # NaN and infinities are results
        for at in range(0, len(chosen), step):
            block = chosen[at : at + step]
            compared = others[block].astype(np.float64) if metric.with_first else others[block]
            values[block] = metric.of(vectors[block].astype(np.float64), compared)
    per_row = (len(counted), counted.size // max(1, len(counted)))
    return values.reshape(per_row).sum(axis=1), counted.reshape(per_row).sum(axis=1).astype(np.float64)
