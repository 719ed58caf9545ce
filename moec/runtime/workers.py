"""Threads that kernels run in: one team and one pool in the process for each number of threads, shared by all callers.

Programs share their loops among a team (:mod:`moec.runtime.team`), in which any caller may launch work, one at a time,
in the order in which they came. Kernels that are measured alone, and programs without code for a team, use TVM's
threads. TVM gives every launching thread a pool of its own, which dies slowly with that thread, and whose workers do
not exist in a forked child. So one thread of ours launches such work for all callers, who wait for it.

After a fork, the child makes new teams and pools. A fork waits for the calls that are running.
"""

from __future__ import annotations

import collections
import math
import os
import pathlib
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from moec.common.errors import MoecError
from moec.runtime.baton import Baton
from moec.runtime.library import configure_pool
from moec.runtime.team import Team

Result = TypeVar("Result")

_LONG = 0.1
"""Seconds beyond which a run has to be interruptible."""

_state = threading.local()
_pools: dict[int, _Pool] = {}
_teams: dict[int, Team] = {}
_pools_lock = threading.Lock()
_shared_turns: dict[int, FairLock] = {}
_all_turns: weakref.WeakSet[FairLock] = weakref.WeakSet()


def run_with(count: int, work: Callable[[], Result]) -> Result:
    """Run ``work`` with ``count`` threads for its kernels. Raises the errors of ``work``, and MoecError where the
    system allows no more threads."""
    return Launcher(count, has_team=False).run(work)


class FairLock:
    """A lock that waiters get in the order in which they came, and that a fork waits for."""

    def __init__(self) -> None:
        self._waiting: collections.deque[tuple[int, threading.Lock]] = collections.deque()
        self._owner: int | None = None
        self._mutex = threading.Lock()
        _all_turns.add(self)

    def __enter__(self) -> None:
        self.take()

    def __exit__(self, *_details: object) -> None:
        self.give()

    def take(self) -> None:
        caller = threading.get_ident()
        with self._mutex:
            if self._owner is None:
                self._owner = caller
                return
            called = threading.Lock()
            called.acquire()
            self._waiting.append((caller, called))
        try:
            called.acquire()
        except BaseException:  # interrupted: the turn may have come just now
            with self._mutex:
                waits = (caller, called) in self._waiting
                if waits:
                    self._waiting.remove((caller, called))
            if not waits:
                self.give()
            raise

    def give(self) -> None:
        with self._mutex:
            if not self._waiting:
                self._owner = None
                return
            self._owner, called = self._waiting.popleft()
            called.release()

    def forget_waiting(self) -> None:
        """Forget the waiting threads, which do not exist in a forked child."""
        self._mutex = threading.Lock()
        self._waiting.clear()

    def become_mine(self) -> None:
        """Let the calling thread work in the turn of another."""
        self._owner = threading.get_ident()

    def is_mine(self) -> bool:
        return self._owner == threading.get_ident()


class Launcher:
    """Start work with ``count`` threads; ``turns`` says whose turn it is.

    The calling thread launches short runs itself, with the team: handing a run to the pool's thread and back takes 10
    microseconds at best, and longer where workers spin on the other cores. The pool's thread launches work without a
    team, the first run, and runs after a long one, because a caller that waits for it can be interrupted. Results are
    the same.
    """

    def __init__(self, count: int, *, has_team: bool, turns: FairLock | None = None) -> None:
        """``turns``: of another launcher with as many threads, whose work must not run at the same time."""
        self._count, self._has_team = count, has_team
        own = FairLock() if count == 1 else _shared_turns.setdefault(count, FairLock())
        self.turns = own if turns is None else turns
        self._seconds = math.inf

    def run(self, work: Callable[[], Result]) -> Result:
        """Run ``work`` in its turn, with all threads. Raises the errors of ``work``, and MoecError where the system
        allows no more threads."""
        if self.turns.is_mine():  # work inside of work
            return work()
        if self._count == 1:
            _be_alone()
            return self._run_here(work)
        if self._has_team and self._seconds < _LONG:
            return self._run_here(work)
        return self._run_by_the_pool(work)

    def baton(self) -> Baton:
        """Make a baton for :meth:`in_turn`."""
        return Baton(self.turns.become_mine)

    def in_turn(self, baton: Baton, first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
        """Run two works that pass the ``baton``, in one turn and with all threads. What they run takes no turn of its
        own."""

        def join() -> Any:
            _state.count = self._count
            if self._count == 1:
                _be_alone()
            return second()

        return self.run(lambda: baton.in_turn(first, join))

    def _run_here(self, work: Callable[[], Result]) -> Result:
        before = getattr(_state, "count", 1)
        try:
            self.turns.take()
            _state.count = self._count
            return self._timed(work)
        finally:
            _state.count = before
            if self.turns.is_mine():  # an interruption may come before it is
                self.turns.give()

    def _run_by_the_pool(self, work: Callable[[], Result]) -> Result:
        """Let the pool's thread run the work. The caller waits for the turn, so that all callers are served alike; the
        work gives it back, even if nobody waits for it any more."""
        pool, job = _pool_of(self._count), _DelegatedWork(lambda: self._keeping_turn(work))
        try:
            self.turns.take()
            pool.submit(job)
        except BaseException:
            if self.turns.is_mine() and job.begin():  # the pool will not begin it any more
                self.turns.give()
            raise
        return job.wait()

    def _keeping_turn(self, work: Callable[[], Result]) -> Result:
        self.turns.become_mine()
        try:
            return self._timed(work)
        finally:
            self.turns.give()

    def _timed(self, work: Callable[[], Result]) -> Result:
        start = time.perf_counter()
        result = work()
        self._seconds = time.perf_counter() - start
        return result


class _DelegatedWork:
    """Work that another thread does, and its result."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self._begun, self._done = threading.Lock(), threading.Lock()
        self._done.acquire()

    def begin(self) -> bool:
        """Claim the work. Returns whether nobody has claimed it before."""
        return self._begun.acquire(blocking=False)

    def do(self) -> None:
        if not self.begin():
            return
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error
        self._done.release()

    def wait(self) -> Any:
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._result


def team_here(code: pathlib.Path) -> Team | None:
    """Return the team with which the calling thread shares the loops of programs, or None where it is alone. ``code``:
    object file for a new one. Raises the errors of making one."""
    count = getattr(_state, "count", 1)
    if count == 1:
        return None
    if count not in _teams:
        _teams[count] = Team(count, code)
    return _teams[count]


def team_of(count: int) -> Team | None:
    """Return the team of ``count`` threads, or None before a program has run in one."""
    return _teams.get(count)


class _Pool:
    """A thread that launches work, with its own workers of TVM."""

    def __init__(self, count: int) -> None:
        _check_that_threads_start(count)
        self._count = count
        self._jobs: queue.SimpleQueue[_DelegatedWork] = queue.SimpleQueue()
        ready = _DelegatedWork(lambda: configure_pool(count))
        self.submit(ready)
        # It is never joined: at the end of the process it waits for work.
        self._thread = threading.Thread(target=self._serve, name=f"moec-{count}", daemon=True)
        self._thread.start()
        ready.wait()

    def submit(self, job: _DelegatedWork) -> None:
        """Queue a job."""
        self._jobs.put(job)

    def _serve(self) -> None:
        _state.count, _state.has_pool = self._count, True
        while True:
            self._jobs.get().do()


def _pool_of(count: int) -> _Pool:
    pool = _pools.get(count)
    if pool is None:
        with _pools_lock:
            pool = _pools.get(count)
            if pool is None:
                pool = _pools[count] = _Pool(count)
    return pool


def _be_alone() -> None:
    """Let kernels that the calling thread launches run on it alone, unless it belongs to a pool, whose threads stay."""
    if not getattr(_state, "has_pool", False):
        configure_pool(1)
        _state.has_pool = True


def _check_that_threads_start(count: int) -> None:
    """Raise MoecError unless so many threads can start. TVM would end the process instead."""
    leave = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(count):
            thread = threading.Thread(target=leave.wait)
            thread.start()
            started.append(thread)
    except RuntimeError as error:
        raise MoecError(
            f"{count} threads cannot be started: the system allows this process or user no more (ulimit -u, or a "
            "container's limit of processes); raise the limit or use threads=1"
        ) from error
    finally:
        leave.set()
        for thread in started:
            thread.join()


_held: list[FairLock] = []


def _before_fork() -> None:
    _pools_lock.acquire()
    for turns in list(_all_turns):
        if not turns.is_mine():
            turns.take()
            _held.append(turns)


def _after_fork() -> None:
    while _held:
        _held.pop().give()
    _pools_lock.release()


def _after_fork_in_child() -> None:
    _pools.clear()  # their threads are the parent's
    _teams.clear()
    for turns in _all_turns:
        turns.forget_waiting()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
