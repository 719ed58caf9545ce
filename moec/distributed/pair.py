"""Two runs of a rank's program in turn: one computes while rows of the other one travel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moec.distributed.exchange import RowExchange
from moec.runtime.executor import Executor


class ProgramPair:
    """The program of a rank, ``first``, and its twin, ``second``, with the exchange of rows of each."""

    def __init__(self, executor: Executor, exchange: RowExchange) -> None:
        self.first, self.second = executor, executor.twin()
        self._baton = executor.baton()
        exchange.meanwhile = self._baton.pass_on
        self.exchange, self.second_exchange = exchange, exchange.twin()
        self.first.exchange_rows(self.exchange)
        self.second.exchange_rows(self.second_exchange)

    def in_turn(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run two works in turn, each of which runs its program once. All ranks do the same at the same time."""
        return self.first.in_turn(self._baton, first, second)
