"""Threads that measure experts in parallel; their number does not affect the results."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol


class ParallelRun(Protocol):
    """Signature of :func:`map`, run on one thread or several."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]: ...


@contextlib.contextmanager
def measuring_threads(count: int) -> Iterator[ParallelRun]:
    """Yield a function that maps over items on ``count`` threads, in order, with at most one more result waiting than
    there are threads.

    Each thread multiplies matrices by itself: BLAS would split products among threads, and another number of them
    changes the last bits.
    """
    from threadpoolctl import threadpool_limits

    with contextlib.ExitStack() as stack:
        stack.enter_context(threadpool_limits(1, "blas"))
        pool = stack.enter_context(ThreadPoolExecutor(count))
        stack.callback(pool.shutdown, cancel_futures=True)

        def run(function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]:
            waiting: collections.deque[Future[Any]] = collections.deque()
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        yield run
