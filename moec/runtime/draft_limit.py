"""Number of tokens that a step drafts, chosen by measured times and acceptance, so that drafting stops where it
loses."""

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
"""Steps with drafts after which a step of one token is measured again."""
_FIRST_RATE, _FIRST_WEIGHT = 0.8, 2.0
"""Acceptance assumed before the first trial, and the number of trials that it counts for."""
_KEPT_WEIGHT = 0.9
"""Factor on the weight of earlier trials after each trial."""
_KEPT_UNTRIED = 0.99
"""Factor on the weight of earlier trials after a step without a trial."""
_FIRST_SLOPE = 0.15
"""Time of a further token before it is measured, as a share of a step of one token."""
_LEAST_GAIN = 1.05
_ALLOWANCE = 0.015
"""Share of all time that drafts may lose, in addition to ``_FIRST_ALLOWANCE`` and their earlier gains."""
_FIRST_ALLOWANCE, _MOST_SAVED = 0.5, 8
"""First and largest balance of the account, in steps of one token."""


class DraftLimit:
    """Chooser of the number of drafts, which measures the steps of one text.

    It maximises the expected number of accepted tokens per second, from the median time of steps of each length and the
    acceptance of each kind of draft. An account bounds what wrong expectations can cost: it is credited with the time
    that drafts save and with a small share of all time, and debited with the time that they cost. A step has only as
    many drafts as the account could pay for if all were rejected.
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
        """Choose the number of tokens to draft, 0 for none. ``kind``: the kind of draft that would be tried."""
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
        """Note a step without drafts to judge. Earlier trials slowly lose their weight, so that such drafts are tried
        again."""
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
        """Note that the next step computes ``count`` tokens again because drafts were rejected."""
        self._owed = count

    def bound(self, most: int) -> None:
        """Draft at most ``most`` tokens from here on."""
        self._most = min(self._most, most)

    def _rate(self, kind: Hashable) -> float:
        hits, trials = self._trials.get(kind, (0.0, 0.0))
        return (hits + _FIRST_RATE * _FIRST_WEIGHT) / (trials + _FIRST_WEIGHT)

    def _time(self, size: int) -> float:
        """Median time of steps of ``size`` tokens; an unmeasured one is interpolated from the nearest measured size."""
        if size in self._times:
            return statistics.median(self._times[size])
        plain = statistics.median(self._times[1])
        longer = [other for other in self._times if other > 1]
        if not longer:
            return plain * (1 + _FIRST_SLOPE * (size - 1))
        nearest = min(longer, key=lambda other: abs(other - size))
        return plain + max(0.0, statistics.median(self._times[nearest]) - plain) * (size - 1) / (nearest - 1)
