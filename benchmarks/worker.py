"""One process per contestant, so that a crash affects no other, and thread pools and OpenMP libraries stay apart.

A process is stopped (SIGSTOP) whenever it has nothing to do: threads that still spin after a call, or always, would
otherwise take cores from the next contestant.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pathlib
import signal
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from formats import FORMATS
from layers import LAYERS, Case, Weights
from peers import AbsentError, Built, peer_named

BUILD_SECONDS, RUN_SECONDS = 900, 120
"""Time limits of an answer, in seconds, after which the process counts as hung."""


class FailedError(Exception):
    """A peer raised an error, crashed or hung."""


class Worker:
    """The process of one contestant. It starts at the first request, and again after it died."""

    def __init__(self, peer: str, variant: str, threads: int) -> None:
        self._arguments = peer, variant, threads
        self._process: Any = None
        self._connection: Connection | None = None

    def build(self, layer: str, form: str, folder: pathlib.Path) -> float:
        """Build a layer. Returns bits per weight. Raises AbsentError and FailedError."""
        return self._ask(BUILD_SECONDS, "build", layer, form, str(folder))

    def prepare(self, cases: list[Case]) -> None:
        """Prepare the inputs, and run each case once."""
        self._ask(BUILD_SECONDS, "prepare", cases)

    def run(self, index: int, woken_by: int | None) -> float:
        """Time the call on case ``index``, in seconds, right after an untimed call on case ``woken_by``."""
        return self._ask(RUN_SECONDS, "run", index, woken_by)

    def result(self, index: int, tokens: int) -> np.ndarray:
        """Compute the layer's results for the first ``tokens`` tokens of a case."""
        return self._ask(RUN_SECONDS, "result", index, tokens)

    def drop(self) -> None:
        """Drop all built layers."""
        if self._process is not None:
            self._ask(RUN_SECONDS, "drop")

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._process = self._connection = None

    def _ask(self, seconds: float, *request: Any) -> Any:
        if self._process is None:
            self._start()
        assert self._connection is not None
        try:
            with self._awake():
                self._connection.send(request)
                if not self._connection.poll(seconds):
                    raise FailedError(f"no answer within {seconds:.0f} s")
                kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            _signal(self._process, signal.SIGCONT)  # it may have been stopped while it was exiting
            self._process.join(5)
            code = self._process.exitcode
            self.close()
            raise FailedError(f"the process ended with exit code {code}") from error
        except FailedError:
            self.close()
            raise
        if kind == "skip":
            raise AbsentError(value)
        if kind == "error":
            raise FailedError(value)
        return value

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(*self._arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        _signal(self._process, signal.SIGCONT)
        try:
            yield
        finally:
            _signal(self._process, signal.SIGSTOP)


def _signal(process: Any, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


class _Server:
    """The other end: it answers requests by methods of their names."""

    def __init__(self, peer: str, variant: str, threads: int) -> None:
        self._peer, self._variant, self._threads = peer_named(peer), variant, threads
        self._built: Built | None = None
        self._calls: list[Any] = []

    def build(self, layer: str, form: str, folder: str) -> float:
        weights = Weights(LAYERS[layer], pathlib.Path(folder))
        self._built = self._peer.build(self._variant, LAYERS[layer], FORMATS[form], weights, self._threads)
        return self._built.bits

    def prepare(self, cases: list[Case]) -> None:
        assert self._built is not None
        self._calls = [self._built.prepare(case) for case in cases]
        for call in self._calls:  # weights that are mapped from a file become memory of the process when first read
            call()

    def run(self, index: int, woken_by: int | None) -> float:
        if woken_by is not None:
            self._calls[woken_by]()
        call = self._calls[index]
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def result(self, index: int, tokens: int) -> np.ndarray:
        assert self._built is not None
        return np.array(self._built.as_array(self._calls[index]())[:tokens], np.float32)

    def drop(self) -> None:
        self._calls.clear()
        self._built = None


def _serve(peer: str, variant: str, threads: int, connection: Connection) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    server = _Server(peer, variant, threads)
    while True:
        try:
            request, *arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "ok", getattr(server, request)(*arguments)
        except AbsentError as reason:
            answer = "skip", str(reason)
        except Exception as error:  # any error of a peer becomes an entry of the table
            last = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(str(error).split())[:300]
            answer = "error", f"{type(error).__name__}: {text} ({pathlib.Path(last.filename).name}:{last.lineno})"
        connection.send(answer)
