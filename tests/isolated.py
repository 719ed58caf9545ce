"""Work that may crash, hang or eat memory, each item in a worker process with limits: its end is a result as well.

Time is what the process and its children compute, for on a busy machine a minute by the clock may be a few seconds of
work; who computes nothing for as long hangs too.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pathlib
import queue
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any


@dataclasses.dataclass(frozen=True)
class Lost:
    """No result: the process was ended by a signal or an exit of its own (``crashed``), or by the limit of time
    (``hung``)."""

    kind: str
    detail: str


def run_isolated(
    work: Callable[[Any], Any], items: Sequence[Any], *, workers: int = 2, seconds: float = 60, gigabytes: float = 4
) -> Iterator[tuple[Any, Any]]:
    """Each item with ``work(item)``, or with a :class:`Lost`, in the order in which they end.

    ``work`` is a function of a module; items and results are pickled. A process serves items until one is lost, so
    that imports are paid once. It may compute for ``seconds`` on an item, and do nothing for as long. ``gigabytes``
    limits its address space: a MemoryError is an exception of ``work``, which has to catch what it expects; any other
    one is a crash.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    threads = [
        threading.Thread(target=_attend, args=(Worker(work, seconds, gigabytes), waiting, done), daemon=True)
        for _ in range(min(workers, len(items)))
    ]
    for thread in threads:
        thread.start()
    for _ in items:
        yield done.get()
    for thread in threads:
        thread.join()


class Worker:
    """A process for ``work``, started when an item comes; after one that is lost, another. See :func:`run_isolated`."""

    def __init__(self, work: Callable[[Any], Any], seconds: float = 60, gigabytes: float = 4) -> None:
        self._work, self._seconds, self._gigabytes = work, seconds, gigabytes
        self._process: Any = None
        self._here: Connection | None = None

    def do(self, item: Any) -> Any:
        """``work(item)``, or a :class:`Lost`."""
        if self._here is None:
            context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
            self._here, there = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._work, there, self._gigabytes), daemon=True)
            self._process.start()
            there.close()
            self._here.recv()
        try:
            self._here.send(item)
            if self._answers():
                return self._here.recv()
        except (EOFError, OSError):
            self.close()
            code = self._process.exitcode
            return Lost("crashed", signal.Signals(-code).name if code < 0 else f"exit code {code}")
        self._process.kill()
        self.close()
        return Lost("hung", f"no result after {self._seconds:g} s")

    def _answers(self) -> bool:
        assert self._here is not None
        first = last = _seconds_computed(self._process.pid)
        moved = time.monotonic()
        while not self._here.poll(min(1.0, self._seconds)):
            now = _seconds_computed(self._process.pid)
            if now > last:
                last, moved = now, time.monotonic()
            if now - first > self._seconds or time.monotonic() - moved > self._seconds:
                return False
        return True

    def close(self) -> None:
        """End the process; the next item starts another."""
        if self._here is not None:
            self._here.close()
            self._here = None
            self._process.join()


def _seconds_computed(pid: int) -> float:
    """By a process and its children, those that ended included."""
    try:
        # fields 14 to 17 of proc_pid_stat(5); the second, a name in brackets, may hold spaces
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(
        _seconds_computed(int(child)) for child in children
    )


def _attend(worker: Worker, waiting: queue.SimpleQueue[Any], done: queue.SimpleQueue[Any]) -> None:
    """Give the worker items until none waits."""
    while True:
        try:
            item = waiting.get_nowait()
        except queue.Empty:
            break
        done.put((item, worker.do(item)))
    worker.close()


def _serve(work: Callable[[Any], Any], there: Connection, gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    there.send(None)  # what was imported until here is no item's time
    while True:
        try:
            item = there.recv()
        except EOFError:
            return
        there.send(work(item))
