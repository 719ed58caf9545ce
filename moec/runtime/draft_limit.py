"""The number of tokens that a step drafts: from measured times and acceptance, so that drafts that lose end."""

from __future__ import annotations

import collections
import statistics
from collections.abc import Hashable

from moec.runtime.run_memory import FEW_TOKENS

MOST_DRAFTS = FEW_TOKENS - 1
_FEWEST_PLAIN = 3
"""Steps of one token that are measured before the first draft."""
_KEPT_TIMES = 9
_MOST_BETWEEN = 64
"""Steps with drafts after which one of a single token is measured again."""
_FIRST_RATE, _FIRST_WEIGHT = 0.8, 2.0
"""Acceptance that is assumed of what was never tried, and the number of trials that it counts for."""
_KEPT_WEIGHT = 0.9
"""Weight of earlier trials after another one."""
_KEPT_UNTRIED = 0.99
"""The same after a step without trial."""
_FIRST_SLOPE = 0.15
"""Cost of a further token in steps of one, before it is measured."""
_LEAST_GAIN = 1.05
_ALLOWANCE = 0.015
"""Share of the time that drafts may lose, beside ``_FIRST_ALLOWANCE`` and what they gained before."""
_FIRST_ALLOWANCE, _MOST_SAVED = 0.5, 8
"""Balances of the account, in steps of one token: the first one, and the largest."""


class DraftLimit:
    """Measurements of the steps of one text, and the number of drafts that follows from them.

    The expected number of tokens of a step over its expected time decides, by median times of steps of each length and
    the acceptance of each kind of draft. Independently of what is expected, drafts can lose little: what they save is
    credited and what they cost is debited in an account, which also gets a small share of all time. Where the account
    does not cover a step all of whose drafts are rejected, fewer are drafted.
    """

    def __init__(self) -> None:
        self._times: dict[int, collections.deque[float]] = {}
        self._steps: collections.Counter[int] = collections.Counter()
        self._trials: dict[Hashable, tuple[float, float]] = {}
        self._account: float | None = None
        self._since_plain = self._owed = 0
        self._most = MOST_DRAFTS

    @property
    def steps(self) -> list[tuple[int, int, float]]:
        """Tokens of a step, number of such steps, and the median of the last times in seconds, in ascending order."""
        return [(size, self._steps[size], statistics.median(times)) for size, times in sorted(self._times.items())]

    def count(self, kind: Hashable) -> int:
        """Number of tokens to draft, 0 for none. ``kind``: of the draft, whose acceptance counts."""
        if self._account is None or self._since_plain >= _MOST_BETWEEN:
            return 0
        least, rate = 1 + self._owed, self._rate(kind)
        plain = self._time(least)
        best, best_speed, tokens = 0, _LEAST_GAIN / plain, 1.0
        longest = max(self._times)  # a step of unknown time is at most twice as long as a known one
        for count in range(1, min(self._most, 2 * longest - least) + 1):
            tokens += rate**count
            seconds = self._time(least + count)
            if seconds - plain <= self._account and tokens / seconds > best_speed:
                best, best_speed = count, tokens / seconds
        return best

    def tried(self, kind: Hashable, drafted: int, accepted: int) -> None:
        """Note that the first ``accepted`` of ``drafted`` tokens were right."""
        hits, trials = self._trials.get(kind, (0.0, 0.0))
        self._trials[kind] = hits * _KEPT_WEIGHT + accepted, trials * _KEPT_WEIGHT + min(accepted + 1, drafted)

    def passed(self, kind: Hashable) -> None:
        """Note a step in which nothing was drafted that could be judged: what was measured slowly loses its weight, so
        that such drafts are tried again."""
        hits, trials = self._trials.get(kind, (0.0, 0.0))
        self._trials[kind] = hits * _KEPT_UNTRIED, trials * _KEPT_UNTRIED

    def ran(self, drafted: int, accepted: int, seconds: float) -> None:
        """Note a step that took ``seconds`` with its drafts."""
        size = 1 + self._owed + drafted
        self._times.setdefault(size, collections.deque(maxlen=_KEPT_TIMES)).append(seconds)
        self._steps[size] += 1
        self._since_plain = 0 if size == 1 else self._since_plain + 1
        if self._account is None:
            if self._steps[1] >= _FEWEST_PLAIN:
                self._account = _FIRST_ALLOWANCE * self._time(1)
            return
        plain = self._time(1)
        saved = (1 + accepted) * plain - seconds if size > 1 else 0.0
        self._account = min(self._account + saved + _ALLOWANCE * seconds, _MOST_SAVED * plain)

    def owe(self, count: int) -> None:
        """Note that the next step computes ``count`` tokens again, of which drafts that were rejected are the cause."""
        self._owed = count

    def bound(self, most: int) -> None:
        """Draft at most ``most`` tokens from here on."""
        self._most = min(self._most, most)

    def _rate(self, kind: Hashable) -> float:
        hits, trials = self._trials.get(kind, (0.0, 0.0))
        return (hits + _FIRST_RATE * _FIRST_WEIGHT) / (trials + _FIRST_WEIGHT)

    def _time(self, size: int) -> float:
        """Time of a step of ``size`` tokens; of one that was never measured, in proportion to the nearest other."""
        if size in self._times:
            return statistics.median(self._times[size])
        plain = statistics.median(self._times[1])
        longer = [other for other in self._times if other > 1]
        if not longer:
            return plain * (1 + _FIRST_SLOPE * (size - 1))
        nearest = min(longer, key=lambda other: abs(other - size))
        return plain + max(0.0, statistics.median(self._times[nearest]) - plain) * (size - 1) / (nearest - 1)
