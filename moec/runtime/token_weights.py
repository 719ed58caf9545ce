"""Weights of tokens: probabilities as whole numbers, so that their sums do not depend on the order.

The weight of a logit l below the largest logit m is ``WHOLE * 2 ** -x`` with ``x = (m - l) * log2(e) / temperature``,
so weights are proportional to the softmax. All of it is integer arithmetic except one subtraction and one product in
float64, which every processor rounds alike. So the host and kernels
(:mod:`moec.targets.gpu.kernels.sample`) select the same token.

1. x is cut to 32 bits behind the binary point.
2. ``2 ** -fraction`` is a polynomial in fixed point of 31 bits, which interpolates at Chebyshev's points and is exact
   at 0 (Press et al., "Numerical recipes", section 5.8); its relative error is below 3e-9.
3. It is shifted right by the whole part. Weights below 1 become 0.

The largest logit, infinite ones too, has the weight ``WHOLE``; a logit of -inf beside a larger one has 0.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

WHOLE_BITS = 39
WHOLE = 1 << WHOLE_BITS
"""Weight of the largest logit. The sum of 2**20 of them is an int64, and converts to float64 with one rounding."""
FRACTION_BITS = 32
POLYNOMIAL_BITS = 31
COEFFICIENTS = (2147483648, 1488522236, 515882469, 119193747, 20652244, 2856024, 319744, 24275)
"""Of ``2 ** -f`` for f from 0 to 1, times ``2 ** POLYNOMIAL_BITS``, from the constant on, with alternating signs."""
MOST_TOKENS = 1 << 20
"""The largest vocabulary whose weights can be added."""
BOTTOM = WHOLE_BITS + 1
"""Value of x from which on weights are 0."""


def scale_of(temperature: float) -> float:
    """Factor from the distance of a logit to x in units of ``2 ** -FRACTION_BITS``; inf for a tiny temperature."""
    return (1 << FRACTION_BITS) * math.log2(math.e) / temperature


def weights(logits: np.ndarray[Any, Any], temperature: float) -> np.ndarray[Any, Any]:
    """Weights int64 of logits float32 [n]."""
    largest = logits.max()
    with np.errstate(invalid="ignore", over="ignore"):  # infinities
        x = np.subtract(largest, logits, dtype=np.float64)
        x *= scale_of(temperature)
    x[logits == largest] = 0
    fixed = np.minimum(x, float(BOTTOM << FRACTION_BITS), out=x).astype(np.int64)
    fraction = fixed & ((1 << FRACTION_BITS) - 1)
    power = np.full(fixed.shape, COEFFICIENTS[-1], np.int64)
    for coefficient in COEFFICIENTS[-2::-1]:
        power *= fraction
        power >>= FRACTION_BITS
        np.subtract(coefficient, power, out=power)
    power <<= WHOLE_BITS - POLYNOMIAL_BITS
    fixed >>= FRACTION_BITS
    power >>= fixed
    return power
