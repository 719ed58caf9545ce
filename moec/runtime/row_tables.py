"""Tables of which a program reads rows alone, such as embeddings: rows are read from the file when they are looked up.

A step looks up few rows, so reads go through the system's file cache, which keeps those that are looked up often and
gives their memory away where it is short.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import weakref
from collections.abc import Sequence

import numpy as np

from moec.common.errors import ArtifactError
from moec.runtime.manifest import WeightEntry


@dataclasses.dataclass
class RowCounts:
    """Counts since the model was loaded: rows that were looked up, rows that were read for them, and their bytes."""

    looked_up: int = 0
    read: int = 0
    bytes_read: int = 0


class RowTables:
    """Tables of a file of weights. A program refers to a table by the address of the memory that it would take."""

    def __init__(self, path: pathlib.Path, entries: Sequence[WeightEntry], address: int) -> None:
        """``address``: of the memory reserved for the whole file. Raises OSError where the file cannot be opened."""
        self.counts = RowCounts()
        self._where, self._tables = str(path), {address + entry.offset: entry for entry in entries}
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._advise("POSIX_FADV_RANDOM", 0, 0)  # without it a read of one row reads its neighbours, too

    def read(self, address: int, places: np.ndarray, rows: np.ndarray) -> bool:
        """Read rows of the table at an address, each distinct one once, into ``rows``, uint8 [count, bytes of a row].
        ``places``: int64 [count], numbers of rows in the table. Returns False for a table that is in memory.

        Raises ArtifactError where the file cannot be read.
        """
        entry = self._tables.get(address)
        if entry is None:
            return False
        distinct, first, which = np.unique(places, return_index=True, return_inverse=True)
        width = rows.shape[1]
        starts = (entry.offset + distinct * width).tolist()
        for start in starts if len(starts) > 1 else ():  # the disk reads several at a time
            self._advise("POSIX_FADV_WILLNEED", start, width)
        for number, start in enumerate(starts):
            self._read(f"row {distinct[number]} of {entry.name!r}", start, rows[first[number]])
        again = np.ones(len(places), bool)
        again[first] = False
        rows[again] = rows[first[which[again]]]
        self.counts.looked_up += len(places)
        self.counts.read += len(starts)
        self.counts.bytes_read += len(starts) * width
        return True

    def _read(self, what: str, start: int, row: np.ndarray) -> None:
        done = 0
        while done < row.size:
            try:
                count = os.preadv(self._file, [row[done:].data], start + done)
            except OSError as error:
                raise self._unreadable(what, f"byte {start + done}: {error.strerror or error}") from error
            if count == 0:
                raise self._unreadable(what, f"the file ends before byte {start + done + 1}; it was truncated")
            done += count

    def _unreadable(self, what: str, reason: str) -> ArtifactError:
        return ArtifactError(f"{self._where}: {what} cannot be read: {reason}; copy or compile the artifact again")

    def _advise(self, advice: str, start: int, size: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file, start, size, getattr(os, advice))
