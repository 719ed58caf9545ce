"""Reads of parts of a file into memory by several threads; urgent ones before those that are only expected.

Reads bypass the system's file cache where the file system allows it (O_DIRECT): a streamed model is larger than memory,
and cached pages would take memory from weights. Several pieces are read at a time, because a disk is only fast with
more than one request.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import os
import pathlib
import threading
import weakref
from collections.abc import Iterator, Sequence

import numpy as np

from moec.common.errors import ArtifactError

PAGE = 4096
PIECE = 1 << 20
"""Bytes of one read: the smallest size at which the measured disks reach their full speed
(benchmarks/results/streaming.md)."""
THREADS = 4
"""Number of reads that run at a time."""

Range = tuple[int, int]
"""Begin and end of bytes, both in the file and in memory."""

_queues: weakref.WeakSet[_Queue] = weakref.WeakSet()


@dataclasses.dataclass(eq=False)
class PendingRead:
    """Ranges that are read together.

    ``what``: their description, for messages. ``left``: number of pieces that are not read yet. ``dropped``: whether
    some will not be read. ``error``: reason why they cannot be read.
    """

    what: str
    ranges: Sequence[Range]
    left: int = 0
    dropped: bool = False
    error: str | None = None

    def pieces(self) -> Iterator[Range]:
        """Iterate over pieces that begin at a page, in order."""
        for start, end in self.ranges:
            for place in range(start // PAGE * PAGE, end, PIECE):
                yield place, min(place + PIECE, end)


class DirectReads:
    """Reader of a file into ``memory``, which is page-aligned and has the file's size, rounded up to whole pages.

    A thread that calls :meth:`ask`, :meth:`hurry` or :meth:`drop` has to hold :attr:`changed`, a condition that is
    notified of every reading that ends.
    """

    def __init__(self, path: pathlib.Path, memory: np.ndarray) -> None:
        """Raise OSError where the file cannot be opened."""
        self._queue = _Queue(path, memory)
        # Threads refer to the queue alone, so that they end when the reader is no longer in use.
        weakref.finalize(self, self._queue.end)

    @property
    def changed(self) -> threading.Condition:
        return self._queue.changed

    @property
    def bytes_read(self) -> int:
        """Number of all bytes that were read so far."""
        return self._queue.bytes_read

    def ask(self, reading: PendingRead, *, urgent: bool) -> None:
        """Begin to read. Readings that are not ``urgent`` wait for all that are."""
        pieces = [(reading, *piece) for piece in reading.pieces()]
        reading.left, reading.dropped, reading.error = len(pieces), False, None
        (self._queue.urgent if urgent else self._queue.expected).extend(pieces)
        self._queue.work()

    def hurry(self, reading: PendingRead) -> None:
        """Make an expected reading urgent."""
        self._queue.urgent.extend(self._queue.take_back(reading))
        self._queue.work()

    def drop(self, reading: PendingRead) -> bool:
        """Drop the pieces of an expected reading that were not begun. Returns False where all were begun."""
        taken = len(self._queue.take_back(reading))
        reading.left -= taken
        reading.dropped = taken > 0
        return taken > 0


class _Queue:
    """Pieces to read, and the threads that read them."""

    def __init__(self, path: pathlib.Path, memory: np.ndarray) -> None:
        self._path, self._memory = path, memory
        self._direct = True
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
        except OSError as error:
            if error.errno != errno.EINVAL:  # the file system does not support direct reads
                raise
            self._file, self._direct = os.open(path, os.O_RDONLY), False
        self.urgent: collections.deque[tuple[PendingRead, int, int]] = collections.deque()
        self.expected: collections.deque[tuple[PendingRead, int, int]] = collections.deque()
        self._threads = self._under_way = self.bytes_read = 0
        self._ended = False
        self._begin()
        _queues.add(self)

    def _begin(self) -> None:
        lock = threading.Lock()
        self.changed, self._asked = threading.Condition(lock), threading.Condition(lock)

    def work(self) -> None:
        """Let threads begin with the requested pieces."""
        while self._threads < THREADS:
            threading.Thread(target=self._serve, name=f"moec-reads-{self._threads}", daemon=True).start()
            self._threads += 1
        self._asked.notify_all()

    def take_back(self, reading: PendingRead) -> list[tuple[PendingRead, int, int]]:
        """Remove and return the pieces of an expected reading that no thread has begun."""
        taken = [piece for piece in self.expected if piece[0] is reading]
        if taken:
            self.expected = collections.deque(piece for piece in self.expected if piece[0] is not reading)
        return taken

    def end(self) -> None:
        with self.changed:
            self._ended = True
            self._asked.notify_all()

    def _serve(self) -> None:
        while True:
            with self.changed:
                while not (self._ended or self.urgent or self.expected):
                    self._asked.wait()
                if self._ended:
                    self._leave()
                    return
                reading, start, end = (self.urgent or self.expected).popleft()
                self._under_way += 1
            error = self._read(start, end)
            with self.changed:
                self._under_way -= 1
                self.bytes_read += end - start
                reading.error = reading.error or error
                reading.left -= 1
                self.changed.notify_all()

    def _leave(self) -> None:
        self._threads -= 1
        if not self._threads:
            os.close(self._file)

    def _read(self, start: int, end: int) -> str | None:
        """Read bytes. Returns the reason where they cannot be read, else None."""
        whole = -(-end // PAGE) * PAGE
        while start < end:
            try:
                count = os.preadv(self._file, [self._memory[start:whole].data], start)
            except OSError as error:
                if error.errno == errno.EINVAL and self._direct:
                    self._read_through_cache()
                    continue
                return f"byte {start} of it cannot be read: {error.strerror or error}"
            if start + count < end and count % PAGE:  # direct reads stop between pages only at the end of the file
                return f"it ends at byte {start + count}; it was truncated"
            if count == 0:
                return f"it ends at byte {start}; it was truncated"
            start += count
        return None

    def _read_through_cache(self) -> None:
        """Reopen the file without direct reads, for a file system that accepts the flag but then fails to read."""
        with self.changed:
            if self._direct:
                other = os.open(self._path, os.O_RDONLY)
                os.dup2(other, self._file)
                os.close(other)
                self._direct = False

    def pause(self) -> None:
        """Let no thread read until :meth:`go_on`, because memory that is being read into must not be forked."""
        self.changed.acquire()
        while self._under_way:
            self.changed.wait()

    def go_on(self) -> None:
        self.changed.release()

    def begin_in_child(self) -> None:
        """Start anew in a forked child, where the threads do not exist."""
        self._threads = 0
        self._begin()


def read_now(reads: DirectReads, reading: PendingRead, where: str) -> None:
    """Read and wait. Raises ArtifactError where the file cannot be read."""
    with reads.changed:
        reads.ask(reading, urgent=True)
        while reading.left:
            reads.changed.wait()
    if reading.error is not None:
        raise unreadable(where, reading)


def unreadable(where: str, reading: PendingRead) -> ArtifactError:
    """Make an error that says which part of the file ``where`` cannot be read, and why."""
    return ArtifactError(f"{where}: {reading.what} cannot be read: {reading.error}; copy or compile the artifact again")


_paused: list[_Queue] = []


def _before_fork() -> None:
    for queue in list(_queues):
        queue.pause()
        _paused.append(queue)


def _after_fork() -> None:
    while _paused:
        _paused.pop().go_on()


def _after_fork_in_child() -> None:
    while _paused:
        _paused.pop().begin_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
