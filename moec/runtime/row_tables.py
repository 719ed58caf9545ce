"""Tables that a program only looks rows up in, such as embeddings: rows are read from the file on demand.

A step looks up few rows. Reads go through the system's file cache, which keeps frequent rows and frees their memory
when it is short.
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
    """Counts since the model was loaded: rows looked up, rows read from the file, and bytes read."""

    looked_up: int = 0
    read: int = 0
    bytes_read: int = 0


class RowTables:
    """Tables in a file of weights. A program identifies a table by the address that it would have in memory."""

    def __init__(self, path: pathlib.Path, entries: Sequence[WeightEntry], address: int) -> None:
        """``address``: start of the memory reserved for the whole file. Raises OSError if the file cannot be opened."""
        self.counts = RowCounts()
        self._where, self._tables = str(path), {address + entry.offset: entry for entry in entries}
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._advise("POSIX_FADV_RANDOM", 0, 0)  # without it a read of one row reads its neighbours, too

    def read(self, address: int, places: np.ndarray, rows: np.ndarray) -> bool:
        """Read rows of the table at an address into ``rows``, uint8 [count, bytes of a row], each distinct row once.
        ``places``: numbers of the rows in the table, int64 [count]. Returns False if the table is in memory.

        Raises ArtifactError if the file cannot be read.
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
