"""Logarithms of the probabilities of tokens."""

from __future__ import annotations

import dataclasses

import numpy as np

from moec.runtime.sampling import top_k

_LEAST = -9999.0
"""Stands for the logarithm of 0, which JSON cannot express, as in OpenAI's API."""


@dataclasses.dataclass(frozen=True)
class TokenLogprob:
    """A token, the logarithm of its probability, and the most likely tokens with theirs, most likely first."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
    """Compute the logarithm of the softmax of the model's logits float32 [vocabulary], before any penalty, for a token
    and the ``count`` most likely ones. Of equal ones, those with lower ids come first."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinities
        logprobs = wide - wide.max()
        logprobs -= np.log(np.exp(logprobs).sum())
    kept = top_k(logits, count) if count else np.empty(0, np.int64)
    kept = kept[np.argsort(-logits[kept], kind="stable")]
    top = [(int(place), max(_LEAST, float(logprobs[place]))) for place in kept]
    return TokenLogprob(token, max(_LEAST, float(logprobs[token])), top)
