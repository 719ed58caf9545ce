"""Means over rows of data, and differences of two means with confidence intervals, paired by row.

Row i holds c_i positions, over which a metric sums to s_i. The mean is ``m = sum(s) / sum(c)``: positions count alike.
For the difference of two models on the same rows, whose slopes are f'(m) where the quality is f(m), the numbers
``u_i = f'(m_b) * s_bi - f'(m_a) * s_ai`` have the mean ``u = sum(u_i) / sum(c)`` and the residuals ``u_i - u * c_i``.
The standard error of a ratio of sums over n rows is ``sqrt(n / (n - 1) * sum(residual ** 2)) / sum(c)`` (W. G. Cochran,
"Sampling Techniques", 3rd ed., 6.4); where all rows hold as many positions this is the standard deviation of the rows'
own differences, over ``sqrt(n)``. The interval is that of Student's t with n - 1 degrees of freedom. Rows are taken to
be independent of each other; the positions of a row are not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_NORMAL = 1.959963984540054
_FEW = (12.7062, 4.3027, 3.1824, 2.7764)


def quantile_of_t(degrees: int) -> float:
    """Bound of Student's t: 95% of it lie within plus and minus this, to 0.1%. From five degrees on it uses the
    expansion of M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 26.7.5."""
    if degrees <= len(_FEW):
        return _FEW[degrees - 1]
    z, n = _NORMAL, degrees
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def quality(sums: Array, counts: Array, exponential: bool = False) -> float:
    """Mean over all positions, or its exponential."""
    with np.errstate(all="ignore"):
        mean = sums.sum() / counts.sum()
        return float(np.exp(mean) if exponential else mean)


def difference(sums: Array, first: Array, counts: Array, exponential: bool = False) -> tuple[float, float | None]:
    """Difference of the quality to that of the ``first`` model, and half of its 95% confidence interval, which is None
    for a single row. ``sums`` and ``first`` are [rows], of the same rows with ``counts`` positions."""
    own, other = quality(sums, counts, exponential), quality(first, counts, exponential)
    with np.errstate(all="ignore"):
        apart = own * sums - other * first if exponential else sums - first
        residuals = apart - apart.sum() / counts.sum() * counts
        n = len(counts)
        error = math.sqrt(n / (n - 1) * float(np.square(residuals).sum())) / float(counts.sum()) if n > 1 else None
    return own - other, None if error is None else quantile_of_t(n - 1) * error
