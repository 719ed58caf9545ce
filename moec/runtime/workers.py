"""The threads that kernels run in: one pool in the process for each number of threads, whoever calls.

TVM gives every thread that launches work a pool of its own, which dies slowly with that thread, and whose workers are
missing in a forked child. So one thread of ours launches the work of all callers, in the order in which they came, and
callers wait for it. The workers of programs are a team (:mod:`moec.runtime.team`); TVM's serve kernels that are
measured alone. To hand work over and back takes about 10 microseconds; what takes little more runs on the calling
thread alone, see :class:`Ways`.

After a fork, the child makes new pools. A fork waits for the calls that are running.
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
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from moec.errors import MoecError
from moec.runtime.library import configure_pool
from moec.runtime.team import Team

Result = TypeVar("Result")

_HAND_OVER = 10e-6
_SHORT = 100e-6
"""Seconds of a run by the pool, above which a hand-over is not noticed and running alone is not tried."""
_TRIALS = 3
_MOST_KINDS = 1024

_state = threading.local()
_pools: dict[int, _Pool] = {}
_pools_lock = threading.Lock()
_all_turns: weakref.WeakSet[Turns] = weakref.WeakSet()


def run_with(count: int, work: Callable[[], Result]) -> Result:
    """The result of ``work`` where kernels have ``count`` threads. Raises what ``work`` does, and MoecError where the
    system allows no more threads."""
    if count == 1:
        _be_alone()
        return work()
    return _pool_of(count).submit(work).wait()


class Turns:
    """A lock whose waiters get it in the order in which they came, and which a fork waits for."""

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
        except BaseException:  # interrupted: the turn may just have come
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
        """In a forked child, who waited is not there."""
        self._mutex = threading.Lock()
        self._waiting.clear()

    def become_mine(self) -> None:
        """The thread that has the turn lets the calling one work in it."""
        self._owner = threading.get_ident()

    def is_mine(self) -> bool:
        return self._owner == threading.get_ident()


class Ways:
    """Which of two ways a call takes: alone on the calling thread, or by the pool. Calls of one kind (sizes of inputs)
    try both a few times, unless they take long, and then take the one whose best time is better. Results are the same.
    """

    def __init__(self, count: int, turns: Turns) -> None:
        self._count, self._turns = count, turns
        self._times: dict[Hashable, tuple[_Times, _Times]] = {}

    def run(self, kind: Hashable, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which has its turn."""
        times = self._times.get(kind)
        if times is None:
            if len(self._times) >= _MOST_KINDS:
                self._times.clear()
            times = self._times[kind] = (_Times(), _Times())
        alone, pooled = times
        if self._count > 1 and _is_better_by_the_pool(alone, pooled):
            return self.run_by_the_pool(lambda: _timed(work, pooled))
        _be_alone()
        self._turns.take()
        try:
            return _timed(work, alone)
        finally:
            self._turns.give()

    def run_by_the_pool(self, work: Callable[[], Result]) -> Result:
        """The result of ``work``, which has its turn and all threads. It is the caller that waits for the turn, so that
        callers of the pool and others are served alike; the work gives it back, even if nobody waits for it any more.
        """
        if self._count == 1:
            _be_alone()
            with self._turns:
                return work()
        pool = _pool_of(self._count)
        self._turns.take()
        try:
            job = pool.submit(lambda: self._keeping_turn(work))
        except BaseException:
            self._turns.give()
            raise
        return job.wait()

    def _keeping_turn(self, work: Callable[[], Result]) -> Result:
        self._turns.become_mine()
        try:
            return work()
        finally:
            self._turns.give()


def _timed(work: Callable[[], Result], times: _Times) -> Result:
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    times.trials += 1
    if seconds < times.best:
        times.best = seconds
    return result


class _Times:
    """How often calls of one kind took one way, and the least seconds of one."""

    __slots__ = ("best", "trials")

    def __init__(self) -> None:
        self.best, self.trials = math.inf, 0


def _is_better_by_the_pool(alone: _Times, pooled: _Times) -> bool:
    if pooled.trials < _TRIALS or pooled.best > _SHORT:
        return True
    return alone.trials >= _TRIALS and alone.best > pooled.best + _HAND_OVER


class _Job:
    """Work that is done elsewhere, and what came of it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work, self._result, self._error = work, None, None
        self._done = threading.Lock()
        self._done.acquire()

    def do(self) -> None:
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
    """The team with which the calling thread shares the loops of programs; None where it is alone. ``code``: the object
    file of a new one. Raises what making one does."""
    pool: _Pool | None = getattr(_state, "pool", None)
    if pool is None:
        return None
    if pool.team is None:
        pool.team = Team(pool.count, code)
    return pool.team


def team_of(count: int) -> Team | None:
    """The team of so many threads, once a program has run in one."""
    pool = _pools.get(count)
    return None if pool is None else pool.team


class _Pool:
    """A thread that launches, and the workers that it has: a team for programs that have code for one, and those of TVM
    for other kernels."""

    def __init__(self, count: int) -> None:
        _check_that_threads_start(count)
        self.count = count
        self.team: Team | None = None
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        ready = _Job(lambda: configure_pool(count))
        self._jobs.put(ready)
        # It is never joined: at the end of the process it waits for work.
        self._thread = threading.Thread(target=self._serve, name=f"moec-{count}", daemon=True)
        self._thread.start()
        ready.wait()

    def submit(self, work: Callable[[], Any]) -> _Job:
        """Have ``work`` done when its time has come; at once where the pool itself asks."""
        job = _Job(work)
        if threading.current_thread() is self._thread:
            job.do()
        else:
            self._jobs.put(job)
        return job

    def _serve(self) -> None:
        _state.pool = self
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
    """Let kernels that the calling thread launches run on it alone."""
    if not getattr(_state, "is_alone", False):
        configure_pool(1)
        _state.is_alone = True


def _check_that_threads_start(count: int) -> None:
    """TVM ends the process where it gets no thread, so that threads are tried before it asks for them."""
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


_held: list[Turns] = []


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
    for turns in _held:
        turns.forget_waiting()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
