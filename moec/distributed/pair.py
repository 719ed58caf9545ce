"""Two runs of a rank's program in turn: one computes while rows of the other one travel."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import Any, TypeVar

from moec.distributed.exchange import RowExchange
from moec.runtime.executor import Executor
from moec.runtime.ranks import LEAST_OF_HALF, LEAST_WAIT

Result = TypeVar("Result")

_LEARNED = 2
"""Whole runs that decide: the first one also waits for ranks that load later."""


class ProgramPair:
    """The program of a rank, ``first``, and its twin, ``second``, with the exchange of rows of each."""

    def __init__(self, executor: Executor, exchange: RowExchange) -> None:
        self.first, self.second = executor, executor.twin()
        self._baton = executor.baton()
        self._shares: collections.deque[float] = collections.deque(maxlen=_LEARNED)
        exchange.meanwhile = self._baton.pass_on
        self.exchange, self.second_exchange = exchange, exchange.twin()
        self.first.exchange_rows(self.exchange)
        self.second.exchange_rows(self.second_exchange)

    @property
    def pays(self) -> bool:
        """Whether halves pay on this rank: it waited for rows during much of each whole run that was long."""
        return len(self._shares) >= _LEARNED and min(self._shares) >= LEAST_WAIT

    def whole(self, run: Callable[[], Result], tokens: int) -> Result:
        """Run the first program alone, and learn from many ``tokens`` whether halves pay."""
        self.exchange.waited, start = 0.0, time.perf_counter()
        result = run()
        if tokens // 2 >= LEAST_OF_HALF:
            self._shares.append(self.exchange.waited / (time.perf_counter() - start))
        return result

    def in_turn(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run two works in turn, each of which runs its program once. All ranks do the same at the same time."""
        return self.first.in_turn(self._baton, first, second)
