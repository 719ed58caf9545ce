"""Pages of memory at the places of experts: released to the system, or moved from one expert to another.

A released page costs three times: the system takes it, finds another one, and fills that with zeros before a read
writes to it. Where the pages of the outgoing expert fit the incoming one they are moved instead (Linux' mremap).
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Sequence

import numpy as np

from moec.runtime.direct_reads import PAGE, Range

_MAY_MOVE, _FIXED, _LEAVE_MAPPED = 1, 2, 4
_FAILED = ctypes.c_void_p(-1).value


def own_pages(place: Range) -> Range:
    """Bounds of the whole pages inside of a range; empty where there is none."""
    start, end = place
    first = -(-start // PAGE) * PAGE
    return first, max(first, end // PAGE * PAGE)


class ExpertPages:
    """Pages of a private mapping."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self._mapping = mapping
        self._start = np.frombuffer(mapping, np.uint8).ctypes.data
        self._move = None
        if sys.platform == "linux":
            self._move = ctypes.CDLL(None, use_errno=True).mremap
            self._move.restype = ctypes.c_void_p
            self._move.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]

    def release(self, places: Sequence[Range]) -> None:
        """Release the pages inside of the ranges; their contents are lost."""
        for first, last in map(own_pages, places):
            if last > first:
                self._mapping.madvise(mmap.MADV_DONTNEED, first, last - first)

    def move(self, places: Sequence[Range], others: Sequence[Range]) -> bool:
        """Move pages of some ranges to others, which have no pages. Returns False where they do not fit or the system
        cannot do that; some pages may then be lost."""
        sources, targets = list(map(own_pages, places)), list(map(own_pages, others))
        if self._move is None or [last - first for first, last in sources] != [last - first for first, last in targets]:
            return False
        how = _MAY_MOVE | _FIXED | _LEAVE_MAPPED
        for (first, last), (target, _) in zip(sources, targets, strict=True):
            size = last - first
            if size and self._move(self._start + first, size, size, how, self._start + target) in (None, _FAILED):
                return False
        return True
