"""Traces of random routing."""

from __future__ import annotations

import numpy as np


def zipf_trace(tokens, experts, k, *, seed, exponent=1.0, drift=0.0):
    """Make a trace [T,k] whose experts have loads like Zipf's law, n**-exponent for the n-th.

    ``drift``: share of the experts by which their order has moved at the end. Gumbel noise on logarithms selects
    distinct experts, as a softmax router would."""
    random = np.random.default_rng(seed)
    order = random.permutation(experts)
    moved = (np.arange(tokens) * drift * experts / max(1, tokens)).astype(np.int64)
    popularity = -exponent * np.log1p((np.argsort(order)[None, :] + moved[:, None]) % experts)
    scores = popularity + random.gumbel(size=(tokens, experts))
    return np.argsort(-scores, axis=1, kind="stable")[:, :k].astype(np.int32)
