"""Selection of the next token: pure functions of logits [vocabulary].

An excluded token has the logit -inf. ``Sampling`` applies the steps in the order of transformers: repetition penalty,
temperature, top-k, top-p, min-p, and a draw from the softmax of the remaining tokens.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from moec.common.arguments import check_kind
from moec.common.errors import MoecError

Logits = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Options of the selection. ``temperature`` 0 takes the most likely token without drawing. ``top_k`` 0, ``top_p``
    1, ``min_p`` 0 and ``repetition_penalty`` 1 have no effect. Raises MoecError for numbers out of range."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, math.inf)
        _check("top_p", self.top_p, 0, 1, above=True)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0, math.inf, above=True)
        for name, number in (("top_k", self.top_k), ("seed", self.seed)):
            check_kind(name, number, int, "a whole number from 0 up")
            _check(name, number, 0, math.inf)
        if self.temperature == 0 and (self.top_k, self.top_p, self.min_p) != (0, 1, 0):
            raise MoecError("top_k, top_p and min_p choose what to draw from; give a temperature above 0 with them")

    def choose(self, logits: Logits, seen: Logits, random: np.random.Generator) -> int:
        """Select the next token. ``seen``: bool [vocabulary], the tokens so far. Raises MoecError for logits that are
        NaN."""
        if np.isnan(logits).any():
            raise MoecError("the model's logits are not numbers (NaN): its weights or what it was given overflow")
        logits = repetition_penalty(logits, seen, self.repetition_penalty)
        if self.temperature == 0:
            return int(np.argmax(logits))  # the first of equal ones
        logits = min_p(top_p(top_k(logits.astype(np.float64) / self.temperature, self.top_k), self.top_p), self.min_p)
        return draw(logits, random)


def repetition_penalty(logits: Logits, seen: Logits, penalty: float) -> Logits:
    """Divide positive logits of seen tokens by the penalty, multiply others (Keskar et al., "CTRL", arXiv 1909.05858,
    with the sign that transformers gave it)."""
    if penalty == 1:
        return logits
    return np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the k largest, the first of equal ones; all where k is 0 (Fan et al., "Hierarchical neural story
    generation", arXiv 1805.04833)."""
    if k == 0 or k >= logits.size:
        return logits
    least = np.partition(logits, -k)[-k]
    return _only(logits, _descending(logits, np.flatnonzero(logits >= least))[:k])


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the fewest most likely tokens whose probabilities add up to p or more (nucleus sampling, Holtzman et al.,
    "The curious case of neural text degeneration", arXiv 1904.09751)."""
    if p >= 1:
        return logits
    likely = probabilities(logits)
    # All tokens less likely than this add up to less than 1 - p, so none of them is kept.
    order = _descending(likely, np.flatnonzero(likely >= (1 - p) / logits.size))
    before = np.cumsum(likely[order]) - likely[order]
    return _only(logits, order[(before < p) | (np.arange(order.size) == 0)])


def min_p(logits: Logits, p: float) -> Logits:
    """Keep the tokens that are at least p times as likely as the likeliest (Nguyen et al., "Turning up the heat: min-p
    sampling", arXiv 2407.01082)."""
    likely = probabilities(logits)
    return np.where(likely >= p * likely.max(), logits, -np.inf)


def draw(logits: Logits, random: np.random.Generator) -> int:
    """Draw a token by its probability: a uniform number is looked up among the cumulative sums."""
    sums = np.cumsum(probabilities(logits))
    place = int(np.searchsorted(sums, random.random() * sums[-1], side="right"))
    return min(place, int(np.flatnonzero(logits > -np.inf)[-1]))  # the last sum may be rounded down


def probabilities(logits: Logits) -> Logits:
    """Softmax of the logits, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def _descending(numbers: Logits, places: Logits) -> Logits:
    """Sort places from the largest number to the smallest, stable for equal ones."""
    return places[np.argsort(-numbers[places], kind="stable")]


def _only(logits: Logits, places: Logits) -> Logits:
    kept = np.full_like(logits, -np.inf)
    kept[places] = logits[places]
    return kept


def _check(name: str, number: Any, least: float, most: float, *, above: bool = False) -> None:
    check_kind(name, number, (int, float), "a number")
    if not (least < number if above else least <= number) or not number <= most or math.isinf(number):
        reach = f"{'above' if above else 'from'} {least}{' up' if math.isinf(most) and not above else ''}"
        raise MoecError(f"{name} is {number}; expected a number {reach}{'' if math.isinf(most) else f' to {most}'}")
