"""Processes of a test that are the ranks of a process group over gloo, forked from one that has imported torch."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pathlib
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from moec.common.errors import MoecError
from moec.distributed.group import RankGroup, joined

FACTS = {"artifact": "a1", "moec": "1", "placement": "p1", "transport": "alltoall"}


def start_ranks(size: int, work: Callable[..., Any], *arguments: Any) -> Ranks:
    """Start ``work(rank, *arguments)`` in ``size`` processes, with torchrun's environment."""
    return Ranks(size, work, arguments)


class Ranks:
    """Running ranks. Their processes end like commands: with a line on stderr and an exit code."""

    def __init__(self, size: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.distributed", "pytest", "tests.distributed.rounds"])
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory()
        self._said = [pathlib.Path(self._folder.name, str(rank)) for rank in range(size)]
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        self._results = [here for here, _ in pipes]
        self.processes = []
        for rank, (_, there) in enumerate(pipes):
            environment = {"RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            store = None if rank else listener
            inputs = (environment, store, self._said[rank], there, work, (rank, *arguments))
            self.processes.append(context.Process(target=_be_rank, args=inputs, daemon=True))
            self.processes[-1].start()
            there.close()
        listener.close()  # rank 0 has it now, and takes it along when it ends

    def results(self) -> list[Any]:
        """Wait for the end; the results of ``work`` in each process."""
        results = []
        for pipe in self._results:  # before the processes end: a large result is not sent until somebody reads it
            with contextlib.suppress(EOFError):
                results += [pipe.recv()] if pipe.poll(120) else []
        codes = self.codes(120)
        assert codes == [0] * len(codes), self.said()
        return results

    def codes(self, seconds: float, of: list[int] | None = None) -> list[int]:
        """Wait for the end of ranks, by default all, in a time. Their exit codes; -9 is that of a killed process."""
        end = time.monotonic() + seconds
        chosen = [self.processes[rank] for rank in (range(len(self.processes)) if of is None else of)]
        for process in chosen:
            process.join(max(0.0, end - time.monotonic()))
        alive = [process.pid for process in chosen if process.is_alive()]
        assert not alive, f"{alive} live after {seconds:g} s: {self.said()}"
        return [process.exitcode or 0 for process in chosen]

    def said(self) -> list[str]:
        """Texts that the ranks wrote to stderr."""
        return [path.read_text() if path.exists() else "" for path in self._said]

    def kill(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.join()


@contextlib.contextmanager
def group_of(size: int, seconds: float = 60, **facts: str) -> Iterator[RankGroup]:
    """Join the group of a test."""
    with joined(size, FACTS | facts, seconds) as group:
        yield group


def _be_rank(
    environment: dict[str, Any],
    listener: socket.socket | None,
    said: pathlib.Path,
    there: Any,
    work: Callable[..., Any],
    arguments: Any,
) -> None:
    """``listener``: where the store of rank 0 listens. A port that is free now may be taken before a store asks."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    if listener is not None:
        rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")  # a function has that name, too
        plain, own, kept = rendezvous.TCPStore, listener, []

        def store(**named: Any) -> Any:
            """Keep the store, so that ranks which start a second group do not connect to one that is ending."""
            kept.append(plain(**named, master_listen_fd=os.dup(own.fileno())))
            return kept[-1]

        rendezvous.TCPStore = store
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
    try:
        there.send(work(*arguments))
    except MoecError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
