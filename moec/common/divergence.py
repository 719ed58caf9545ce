"""The Kullback-Leibler divergence of softmaxes: the distance between the predictions of two models."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_BLOCK = 1 << 21
"""Elements that are computed in float64 at a time."""


def log_softmax(logits: Array) -> Array:
    """Compute the logarithm of the softmax over the last axis, in the type of the logits. The largest logit is
    subtracted, so that nothing overflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergences(actual: Array, first: Array) -> Array:
    """Compute the sum of ``p * log(p / q)`` over the last axis, in nats, where p is not 0; p is the softmax of
    ``first`` and q that of ``actual``. A NaN in a vector makes its divergence NaN."""
    expected, log = log_softmax(first), log_softmax(actual)
    terms = np.exp(expected) * (expected - log)
    return np.where(np.isneginf(expected), np.where(np.isnan(log), np.nan, 0), terms).sum(axis=-1)


def total_divergence(actual: Array, first: Array) -> tuple[float, int]:
    """Add up :func:`divergences` over all vectors of two arrays [..., classes], in float64, and count the vectors."""
    classes = max(1, actual.shape[-1])
    vectors, others = (array.reshape(-1, actual.shape[-1]) for array in (actual, first))
    step = max(1, _BLOCK // classes)
    with np.errstate(all="ignore"):
        blocks = [
            divergences(vectors[at : at + step].astype(np.float64), others[at : at + step].astype(np.float64)).sum()
            for at in range(0, len(vectors), step)
        ]
    return float(sum(blocks)), len(vectors)
