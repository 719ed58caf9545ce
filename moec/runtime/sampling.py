"""Selection of the next token: pure functions of logits float32 [vocabulary].

``Sampling`` applies the steps in the order of transformers: repetition penalty, bias, penalties of counts, temperature,
top-k, top-p, min-p, and a draw from the softmax of the remaining tokens. Probabilities are whole numbers
(:mod:`moec.runtime.token_weights`), so a GPU selects the same tokens (:mod:`moec.targets.gpu.kernels.sample`). Of equal
logits, the one with the lower id comes first in each step.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from moec.common.arguments import check_kind
from moec.common.errors import MoecError, UnsupportedError
from moec.runtime.token_weights import MOST_TOKENS, WHOLE, scale_of, weights

Logits = np.ndarray[Any, Any]


NOT_NUMBERS = -1
"""Token in place of one for logits that are NaN."""


class Option(enum.IntEnum):
    """Columns of the options that a device takes for each sequence, as float64.

    ``IS_ACTIVE``: whether it selects a token, 1 or 0. ``PENALTY``: of repetitions. ``SCALE``: see
    :func:`moec.runtime.token_weights.scale_of`; 0 takes the most likely token. ``TOP_K``: 0 for all. ``TOP_P``.
    ``LEAST_WEIGHT``: of tokens that may be drawn. ``NUMBER``: the random one, uniform in [0, 1)."""

    IS_ACTIVE = 0
    PENALTY = 1
    SCALE = 2
    TOP_K = 3
    TOP_P = 4
    LEAST_WEIGHT = 5
    NUMBER = 6


_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of the selection. ``temperature`` 0 takes the most likely token without drawing. ``top_k`` 0, ``top_p``
    1, ``min_p`` 0, ``repetition_penalty`` 1 and other penalties of 0 have no effect. ``logit_bias``: token ids, and
    what is added to their logits. Raises MoecError for numbers out of range."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_p", self.top_p, 0, 1, above=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, _LARGEST, above=True)
        _check("presence_penalty", self.presence_penalty, -2, 2)
        _check("frequency_penalty", self.frequency_penalty, -2, 2)
        biased = [("a token of logit_bias", token) for token, _ in self.logit_bias]
        for name, number in (("top_k", self.top_k), ("seed", self.seed), *biased):
            check_kind(name, number, int, "a whole number from 0 up")
            _check(name, number, 0, math.inf)
        for token, number in self.logit_bias:
            _check(f"logit_bias of token {token}", number, -100, 100)
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (0, 1, 0):
            raise MoecError("top_k, top_p and min_p choose what to draw from; give a temperature above 0 with them")

    def choose(
        self,
        logits: Logits,
        seen: Logits,
        random: np.random.Generator,
        counts: Mapping[int, int] = MappingProxyType({}),
        allowed: Logits | None = None,
    ) -> int:
        """Select the next token. ``seen``: bool [vocabulary], the tokens so far. ``counts``: how often each was
        generated. ``allowed``: ids that may be selected, ascending, 1 or more; None for all. Raises MoecError for
        logits that are NaN, and for a bias of a token outside of the vocabulary."""
        if np.isnan(np.max(logits)):  # the largest of numbers and a NaN is NaN
            raise not_numbers()
        logits = repetition_penalty(np.asarray(logits, np.float32), seen, self.repetition_penalty)
        logits = add_bias(logits, self.logit_bias)
        logits = count_penalties(logits, counts, self.presence_penalty, self.frequency_penalty)
        if allowed is not None:
            return int(allowed[self._chosen(logits[allowed], random)])
        return self._chosen(logits, random)

    def _chosen(self, logits: Logits, random: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(np.argmax(logits))  # the first of equal ones
        kept = top_k(logits, self.top_k)
        logits = logits[kept]
        likely = min_p(top_p(logits, weights(logits, self.temperature), self.top_p), self.min_p)
        return int(kept[draw(likely, random.random())])

    def options(self, random: np.random.Generator) -> list[float]:
        """A row of :class:`Option` by which a device selects the token that :meth:`choose` would. Raises
        UnsupportedError for options that devices do not have."""
        if self.presence_penalty or self.frequency_penalty or self.logit_bias:
            raise UnsupportedError(
                "presence_penalty, frequency_penalty and logit_bias need the processor; leave them out on a GPU"
            )
        if self.temperature == 0:
            return [1, self.repetition_penalty, 0, 0, 1, 0, 0]
        top_k, least = min(self.top_k, MOST_TOKENS), self.min_p * WHOLE
        scale = scale_of(self.temperature)
        return [1, self.repetition_penalty, scale, top_k, self.top_p, least, random.random()]


def not_numbers() -> MoecError:
    """Error for logits that are NaN."""
    return MoecError("the model's logits are not numbers (NaN): its weights or what it was given overflow")


def repetition_penalty(logits: Logits, seen: Logits, penalty: float) -> Logits:
    """Divide positive logits of seen tokens by the penalty, multiply others (Keskar et al., "CTRL", arXiv 1909.05858,
    with the sign that transformers gave it)."""
    if penalty == 1:
        return logits
    with np.errstate(over="ignore"):
        changed = np.where(logits > 0, logits / np.float32(penalty), logits * np.float32(penalty))
    return np.where(seen, changed, logits)


def add_bias(logits: Logits, bias: Sequence[tuple[int, float]]) -> Logits:
    """Add to the logits of some tokens."""
    if not bias:
        return logits
    tokens, numbers = zip(*bias, strict=True)
    if max(tokens) >= logits.size:
        raise MoecError(f"logit_bias has token {max(tokens)}; the vocabulary has {logits.size}")
    logits = logits.copy()
    logits[list(tokens)] += np.array(numbers, np.float32)
    return logits


def count_penalties(logits: Logits, counts: Mapping[int, int], presence: float, frequency: float) -> Logits:
    """Subtract ``presence`` from the logits of tokens that were generated, and ``frequency`` for each time (as OpenAI's
    API describes)."""
    if not counts or presence == frequency == 0:
        return logits
    logits = logits.copy()
    numbers = np.array([*counts.values()], np.float32)
    logits[list(counts)] -= np.float32(presence) + np.float32(frequency) * numbers
    return logits


def top_k(logits: Logits, k: int) -> Logits:
    """Ids of the k largest; of all where k is 0 (Fan et al., "Hierarchical neural story generation", arXiv
    1805.04833). Ids are ascending."""
    if k == 0 or k >= logits.size:
        return np.arange(logits.size)
    least = np.partition(logits, -k)[-k]
    return np.sort(_descending(logits, np.flatnonzero(logits >= least))[:k])


def top_p(logits: Logits, likely: Logits, p: float) -> Logits:
    """Weights of the fewest most likely tokens whose weights ``likely`` add up to p of all or more, 0 for others
    (nucleus sampling, Holtzman et al., "The curious case of neural text degeneration", arXiv 1904.09751)."""
    if p >= 1:
        return likely
    total = int(likely.sum())
    limit = max(1, int(float(total) * p))
    # All tokens less likely than this add up to less than the rest, so none of them is kept.
    least = logits[likely >= (total - limit) // logits.size].min()
    order = _descending(logits, np.flatnonzero(logits >= least))
    before = np.cumsum(likely[order]) - likely[order]
    kept = order[before < limit]
    left = np.zeros_like(likely)
    left[kept] = likely[kept]
    return left


def min_p(likely: Logits, p: float) -> Logits:
    """Weights of the tokens that are at least p times as likely as the likeliest of all, 0 for others (Nguyen et al.,
    "Turning up the heat: min-p sampling", arXiv 2407.01082)."""
    return likely if p == 0 else np.where(likely >= p * WHOLE, likely, 0)


def draw(likely: Logits, number: float) -> int:
    """Place that a uniform ``number`` below 1 falls on among the cumulative sums of weights."""
    sums = np.cumsum(likely)
    total = int(sums[-1])
    return int(np.searchsorted(sums, min(int(float(total) * number), total - 1), side="right"))


def _descending(numbers: Logits, places: Logits) -> Logits:
    """Sort places from the largest number to the smallest, stable for equal ones."""
    return places[np.argsort(-numbers[places], kind="stable")]


def _check(name: str, number: Any, least: float, most: float, *, above: bool = False) -> None:
    check_kind(name, number, (int, float), "a number")
    if not (least < number if above else least <= number) or not number <= most or math.isinf(number):
        reach = f"{'above' if above else 'from'} {least}{' up' if math.isinf(most) and not above else ''}"
        raise MoecError(f"{name} is {number}; expected a number {reach}{'' if math.isinf(most) else f' to {most}'}")
