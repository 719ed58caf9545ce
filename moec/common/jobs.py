"""Jobs that run in other processes: in workers on this machine, or on any executor of PEP 3148.

A job is a call of a function of a module, with arguments that can be pickled: paths and options, never a model. A
:class:`JobRunner` runs jobs and returns their results in the order of the jobs, so that nothing that is made of them
depends on where they ran. By default they run in this process, each when its result is asked for.

::

    with job_runner(workers=2) as runner:
        for result in runner.results(Job(f"file {path}", measure, (path,)) for path in paths):
            ...

Of an executor only ``submit`` is used, and of its futures ``result``, ``cancel`` and ``add_done_callback``. An
exception of a job comes back as its result, so whatever else a future raises means that the process of the job ended.
Such a job is submitted once more and then refused by name; other jobs do not notice. A worker on this machine is a
process of its own, not one of a pool, which the death of any of its processes breaks.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

from moec.common.cores import available_cores
from moec.common.errors import MoecError, one_line
from moec.common.scratch import tidy_up

MOST_SUBMITTED = 64
"""Jobs that an executor of the caller's has at once, because PEP 3148 does not say how many it runs at once."""
MOST_WORKERS = 1024


class JobExecutor(Protocol):
    """The part of :class:`concurrent.futures.Executor` that is used."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]: ...


@dataclasses.dataclass(frozen=True)
class Job:
    """A call of ``function``, which pickle finds by its module and name. ``name`` says in errors what was lost."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Value of a job, or the exception that it raised. ``trace``: traceback in the other process, as text."""

    value: Any = None
    error: Exception | None = None
    trace: str = ""

    def result(self) -> Any:
        """Return the value. Raises the exception of the job."""
        if self.error is None:
            return self.value
        if self.trace:
            self.error.__cause__ = _OtherProcessError(f"\n{self.trace}")
        raise self.error


class _OtherProcessError(Exception):
    """Traceback in the process of a job, shown as the cause of its error."""


class JobRunner:
    """Runs jobs on an executor, or in this process where it is None. ``at_once``: number of jobs that are submitted
    before the first of their results is asked for; ``share``: number of this machine's cores for each job, None where
    that is not known."""

    def __init__(self, executor: JobExecutor | None, at_once: int, share: int | None = None) -> None:
        self._executor, self.at_once, self._share = executor, at_once, share

    @property
    def is_here(self) -> bool:
        """Whether jobs run in this process."""
        return self._executor is None

    def threads_each(self, threads: int | None) -> int | None:
        """Number of threads for each job where the caller asked for ``threads``: workers of one machine share its
        cores. The number does not affect results."""
        return self._share if threads is None else threads

    def in_turn(self) -> JobRunner:
        """Return a runner that submits a job when the result before it was taken."""
        return JobRunner(self._executor, 0, self._share)

    def call(self, job: Job) -> Any:
        """Run one job and wait for it; several threads may call this. Raises what the job raises, and MoecError where
        its worker ended twice."""
        return self._started(job).outcome().result()

    def results(self, jobs: Iterable[Job]) -> Iterator[Any]:
        """Yield the results in the order of the jobs; at most ``at_once`` wait to be taken. Raises the exception of the
        first job in this order that has one; an exception of ``jobs`` comes after those of the jobs before it."""
        waiting: collections.deque[_Started] = collections.deque()
        supply = _Supply(jobs)
        try:
            for job in supply:
                waiting.append(self._started(job))
                if len(waiting) > self.at_once:
                    yield waiting.popleft().outcome().result()
            while waiting:
                yield waiting.popleft().outcome().result()
            supply.check()
        finally:
            _cancel(waiting)

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Outcome]]:
        """Yield numbers of jobs, from 0, and their outcomes in the order in which they come. The error of a job whose
        worker ended twice is a MoecError."""
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        running: dict[int, _Started] = {}
        try:
            for number, job in enumerate(jobs):
                running[number] = self._started(job)
                running[number].when_done(lambda number=number: done.put(number))
                if len(running) > self.at_once:
                    yield _next_of(running, done.get())
            while running:
                yield _next_of(running, done.get())
        finally:
            _cancel(running.values())

    def _started(self, job: Job) -> _Started:
        return _Started(job, self._executor or _Here())


HERE = JobRunner(None, 0)
"""Runs jobs in this process."""


class _Supply:
    """Jobs up to an exception in making them, which waits until their results are taken."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self._jobs = jobs
        self._error: Exception | None = None

    def __iter__(self) -> Iterator[Job]:
        try:
            yield from self._jobs
        except Exception as error:
            self._error = error

    def check(self) -> None:
        """Raise the exception, if there was one."""
        if self._error is not None:
            raise self._error


def _next_of(running: dict[int, _Started], number: int) -> tuple[int, Outcome]:
    try:
        outcome = running[number].outcome()
    except MoecError as error:
        outcome = Outcome(error=error)
    del running[number]
    return number, outcome


def _cancel(jobs: Iterable[_Started]) -> None:
    for job in jobs:
        job.cancel()


class _Started:
    """A job that was submitted."""

    def __init__(self, job: Job, executor: JobExecutor) -> None:
        self._job, self._executor = job, executor
        self._future = self._submit()

    def when_done(self, call: Callable[[], object]) -> None:
        """Call a function, in any thread, when the job has ended."""
        self._future.add_done_callback(lambda _future: call())

    def cancel(self) -> None:
        """Forget the job if it has not begun."""
        self._future.cancel()

    def outcome(self) -> Outcome:
        """Wait for the outcome. Raises MoecError where the process of the job ended twice, or the executor takes no
        more jobs."""
        try:
            return self._future.result()
        except Exception:
            self._future = self._submit()
        try:
            return self._future.result()
        except Exception as error:
            raise MoecError(
                f"{self._job.name}: the process that ran it ended twice ({_described(error)}); if memory ran out, use "
                "fewer workers, or none"
            ) from error

    def _submit(self) -> Future[Any]:
        try:
            return self._executor.submit(_outcome_of, self._job.function, self._job.arguments)
        except Exception as error:
            raise MoecError(f"{self._job.name}: the executor takes no job ({_described(error)})") from error


def _described(error: BaseException) -> str:
    return one_line(error) or type(error).__name__


class _Here:
    """Executor that runs a job in this process, when it is submitted."""

    def submit(self, _function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        function, its_arguments = arguments
        future: Future[Any] = Future()
        try:
            future.set_result(Outcome(function(*its_arguments)))
        except Exception as error:
            future.set_result(Outcome(error=error))
        return future


def _outcome_of(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Outcome:
    """Run a job in the process of a worker."""
    try:
        return Outcome(function(*arguments))
    except Exception as error:
        return Outcome(error=_portable(error), trace=traceback.format_exc())


def _portable(error: Exception) -> Exception:
    """Return an error that another process can read. Some libraries raise exceptions that cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {one_line(error)}")
    return error


@contextlib.contextmanager
def job_runner(workers: int = 0, executor: JobExecutor | None = None) -> Iterator[JobRunner]:
    """Context with a runner of jobs: on an ``executor``, which stays open, or in ``workers`` processes of this machine,
    which end with the block, or in this process. Raises MoecError for both, and for values of another kind."""
    check_workers(workers, executor)
    if executor is not None or not workers:
        yield HERE if executor is None else JobRunner(executor, MOST_SUBMITTED)
        return
    own = _LocalWorkers(workers)
    try:
        yield JobRunner(own, workers, max(1, len(available_cores()) // workers))
    finally:
        own.close()


def check_workers(workers: int, executor: JobExecutor | None) -> None:
    """Raise MoecError for values that :func:`job_runner` does not take."""
    if not isinstance(workers, int) or isinstance(workers, bool) or not 0 <= workers <= MOST_WORKERS:
        raise MoecError(f"workers is {workers!r}; expected a number of processes from 0 to {MOST_WORKERS}")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise MoecError(f"executor is {executor!r}; expected one with submit(), as of concurrent.futures")
    if executor is not None and workers:
        raise MoecError(f"workers={workers} and an executor were given; expected one of the two")


class _LocalWorkers:
    """Executor of ``count`` threads, each with a process of its own."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, "moec-worker")
        self._own = threading.local()
        self._lock = threading.Lock()
        self._living: set[_Worker] = set()
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        return self._threads.submit(self._run, function, arguments)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        worker = self._worker()
        try:
            return worker.run(function, arguments)
        except BaseException:
            self._own.worker = None
            self._end(worker)
            raise

    def _worker(self) -> _Worker:
        """Return the worker of the calling thread, a new one where it has none that lives."""
        worker = getattr(self._own, "worker", None)
        if worker is not None:
            return worker
        with self._lock:
            if self._closed:
                raise RuntimeError("the workers have ended")
            worker = self._own.worker = _Worker()
            self._living.add(worker)
        return worker

    def _end(self, worker: _Worker) -> None:
        with self._lock:
            if worker not in self._living:
                return
            self._living.remove(worker)
        worker.end()

    def close(self) -> None:
        """End all processes, whatever they do."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._closed = True
        for worker in list(self._living):
            self._end(worker)
        self._threads.shutdown()


class _Worker:
    """A process that runs one job at a time. It is spawned, not forked, because a fork of a process with threads may
    hang. It has no semaphores, because Python would warn of them if this process were killed."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, its_pipe = context.Pipe()
        its_lifeline, self._lifeline = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(its_pipe, its_lifeline), daemon=True)
        self._process.start()
        its_pipe.close()
        its_lifeline.close()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Run a job. Raises an exception where the process ends."""
        try:
            self._pipe.send((function, arguments))
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise RuntimeError(f"exit code {self._process.exitcode}") from error

    def end(self) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._lifeline.send_bytes(b"end")
        self._process.join()


def _serve(pipe: Connection, lifeline: Connection) -> None:
    """Run jobs in a worker. Ctrl-C in a terminal reaches it, too, and is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(lifeline,), daemon=True).start()
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(function(*arguments))


def _end_after(lifeline: Connection) -> None:
    """End this process when the one that started it says so, or has ended, even by SIGKILL."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    tidy_up()
    os._exit(1)
