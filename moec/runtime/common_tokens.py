"""Common beginnings of texts: one text can take their states from the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def common_tokens(first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> int:
    """Number of first tokens that two texts share."""
    length = min(len(first), len(second))
    different = np.flatnonzero(np.asarray(first[:length]) != np.asarray(second[:length]))
    return int(different[0]) if different.size else length
