"""A difference of weights as the product of two thin matrices, by what the weight is multiplied with.

Of all matrices D' [in,out] of rank r, which has the smallest error on inputs x with the second moment H? With H = L L^T
the error, the sum of |x (D - D')|^2, is the square of the Frobenius norm of L^T (D - D'), so D' follows from the
singular value decomposition of L^T D (SVD-LLM, arXiv 2403.07378; D2-MoE, arXiv 2502.17298). Its right singular vectors
B are the eigenvectors of D^T H D, and undoing L leaves D' = (D B_r) B_r^T: neither L nor its inverse is needed, and the
error is the sum of the eigenvalues that are left out.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

RIDGE = 0.01
"""Added to the diagonal of a moment, as a share of its mean: directions that the data does not have count a little."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """``into`` [in,r] times ``out`` [r,out], an approximation of a difference. ``dropped``: the sum of the squared
    errors over the inputs; ``size``: the sum of squares of the whole weight's products with the inputs."""

    into: Array
    out: Array
    dropped: float
    size: float


def with_ridge(moment: Array) -> Array:
    """The moment [in,in] in float64, plus the ridge; the identity where nothing was seen. Raises ValueError for a
    matrix that is no second moment."""
    moment = moment.astype(np.float64)
    mean = float(np.mean(np.diag(moment)))
    if not np.isfinite(moment).all() or mean < 0:
        raise ValueError("the second moment of its inputs is negative or not finite")
    return moment + RIDGE * mean * np.eye(len(moment)) if mean else np.eye(len(moment))


def factors(weight: Array, base: Array | None, rank: int, moment: Array) -> Factors:
    """The best product of rank ``rank`` for ``weight - base`` [in,out]; ``moment`` [in,in] as :func:`with_ridge`
    makes it."""
    from threadpoolctl import threadpool_limits

    weight = weight.astype(np.float64)
    difference = weight if base is None else weight - base
    with threadpool_limits(1, "blas"):  # with more, the last bits depend on how many there are
        squares, directions = np.linalg.eigh(difference.T @ moment @ difference)
        kept = directions[:, ::-1][:, :rank]
        size = float(np.sum(weight * (moment @ weight)))
        return Factors(difference @ kept, kept.T, float(np.maximum(squares[::-1][rank:], 0).sum()), size)
