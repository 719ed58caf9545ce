"""Lockstep: every run of a program is one run on all ranks, because each layer's exchange needs all of them.

::

    with Lockstep(exchange, lambda runs: model.run(dummy)):
        for prompt in prompts_of_this_rank:
            exchange.agreed(1)
            model.run(prompt)

A rank whose work is done runs the program on a dummy input, of which nothing is sent, until all ranks are done. Ranks
agree on that before each run. Where one of them has two runs that take turns, all have two: a rank with less work makes
up for it with a dummy input, too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from moec.distributed.exchange import RowExchange


class Lockstep:
    """Runs of this rank beside those of the others. ``idle_run(runs)`` runs the program once on a dummy input, or twice
    in turn."""

    def __init__(self, exchange: RowExchange, idle_run: Callable[[int], Any]) -> None:
        self._exchange = exchange
        self._idle_run = idle_run

    def __enter__(self) -> Lockstep:
        self._exchange.announces = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        self._exchange.announces = False

    def finish(self) -> None:
        """Take part in the runs of the other ranks until none has work left."""
        while runs := self._exchange.group.most(0):
            with self._exchange.idle():
                self._idle_run(runs)
