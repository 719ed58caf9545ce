"""Work that may crash, hang or eat memory, each item in a worker process with limits: its end is a result as well."""

from __future__ import annotations

import dataclasses
import multiprocessing
import queue
import resource
import signal
import threading
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
    that imports are paid once. ``gigabytes`` limits its address space: a MemoryError is an exception of ``work``,
    which has to catch what it expects; any other one is a crash.
    """
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    threads = [
        threading.Thread(target=_attend, args=(work, waiting, done, seconds, gigabytes), daemon=True)
        for _ in range(min(workers, len(items)))
    ]
    for thread in threads:
        thread.start()
    for _ in items:
        yield done.get()
    for thread in threads:
        thread.join()


def _attend(
    work: Callable[[Any], Any],
    waiting: queue.SimpleQueue[Any],
    done: queue.SimpleQueue[Any],
    seconds: float,
    gigabytes: float,
) -> None:
    """One worker process after another, until no item waits."""
    process, here = None, None
    while True:
        try:
            item = waiting.get_nowait()
        except queue.Empty:
            break
        if process is None or here is None:
            process, here = _start(work, gigabytes)
        result = _result(process, here, item, seconds)
        if isinstance(result, Lost):
            process = None
        done.put((item, result))
    if process is not None and here is not None:
        here.close()
        process.join()


def _start(work: Callable[[Any], Any], gigabytes: float) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(work, there, gigabytes), daemon=True)
    process.start()
    there.close()
    return process, here


def _result(process: Any, here: Connection, item: Any, seconds: float) -> Any:
    try:
        here.send(item)
        if here.poll(seconds):
            return here.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode
        return Lost("crashed", signal.Signals(-code).name if code < 0 else f"exit code {code}")
    process.kill()
    process.join()
    return Lost("hung", f"no result after {seconds:g} s")


def _serve(work: Callable[[Any], Any], there: Connection, gigabytes: float) -> None:
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            item = there.recv()
        except EOFError:
            return
        there.send(work(item))
