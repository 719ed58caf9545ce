"""Two works in turn: one computes while the other one waits for messages.

Each has a thread, and only the one that holds the baton goes on. A work passes the baton on where it would wait, so
that steps alternate in an order that depends on the works alone: the same on all ranks of a distributed run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class _OtherFailedError(Exception):
    """The work beside this one has failed."""


class Baton:
    """A baton between two works. Outside of :meth:`in_turn`, passing it on does nothing. A thread that gets it from the
    other one calls ``taken``."""

    def __init__(self, taken: Callable[[], None] = lambda: None) -> None:
        self._taken = taken
        self._calls: tuple[threading.Semaphore, ...] = ()
        self._over = [False, False]
        self._errors: list[BaseException] = []
        self._here = threading.local()

    def pass_on(self) -> None:
        """Let the other work go on until it passes the baton on or ends."""
        if not self._calls:
            return
        own, other = self._here.place, 1 - self._here.place
        if not self._over[other]:
            self._calls[other].release()
            self._calls[own].acquire()
            self._taken()
        if self._errors:
            raise _OtherFailedError

    def in_turn(self, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run two works, the ``first`` one in the calling thread, and return both results. After an error of one, the
        other ends as soon as it has the baton, and the error is raised."""
        self._calls = threading.Semaphore(0), threading.Semaphore(0)
        self._over, self._errors = [False, False], []
        results: list[Any] = [None, None]

        def do(place: int, work: Callable[[], Any]) -> None:
            self._here.place = place
            try:
                if place == 1:
                    self._calls[1].acquire()
                    self._taken()
                if not self._errors:
                    results[place] = work()
            except BaseException as error:
                self._errors.append(error)
            self._over[place] = True
            self._calls[1 - place].release()

        thread = threading.Thread(target=do, args=(1, second), name="moec-second", daemon=True)
        thread.start()
        do(0, first)
        thread.join()
        self._taken()
        self._calls = ()
        if self._errors:
            raise self._errors[0]
        return results[0], results[1]
