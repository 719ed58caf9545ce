"""Address space for a file of weights, of which only some parts become memory.

Parts that are not opened count for no limit on a process' memory (``ulimit -d``) or on promises of memory
(``vm.overcommit_memory=2``). Limits on address space (``ulimit -v``) count all of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
from collections.abc import Iterable

import numpy as np

from moec.runtime.direct_reads import PAGE, Range

_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
_NO_ACCESS = 0
_MOST_GAPS = 8192
"""Number of closed parts. Each begins a mapping of its own, of which a process may have 65,530."""


class ReservedMemory:
    """Private, zeroed memory of ``size`` bytes in whole pages. Bytes outside of the opened parts cannot be accessed.

    ``mapping``: the pages. ``array``: uint8 over them. Raises OSError where there is not so much address space."""

    def __init__(self, size: int) -> None:
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self.mapping = mmap.mmap(-1, -(-size // PAGE) * PAGE, flags=private, prot=_NO_ACCESS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge page would bring the neighbours of the expert that is read
            with contextlib.suppress(OSError):  # a kernel built without huge pages
                self.mapping.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: np.ndarray = np.asarray(_Bytes(self.mapping))

    def open(self, parts: Iterable[Range]) -> None:
        """Let the pages of these parts be read and written; memory is allocated by the first access to each.

        Of very many gaps between them the smallest are opened, too. Raises OSError where a limit is reached."""
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for start, end in _without_small_gaps(_pages_of(parts), _MOST_GAPS):
            if protect(self.array.ctypes.data + start, end - start, mmap.PROT_READ | mmap.PROT_WRITE):
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))


class _Bytes:
    """The bytes of a mapping for numpy: writable, although Python takes a mapping without access for read-only."""

    def __init__(self, mapping: mmap.mmap) -> None:
        self.mapping = mapping
        address = np.frombuffer(mapping, np.uint8).ctypes.data
        self.__array_interface__ = {"data": (address, False), "shape": (len(mapping),), "typestr": "|u1", "version": 3}


def _pages_of(parts: Iterable[Range]) -> list[Range]:
    """List the whole pages around parts, in order; those that touch are one."""
    joined: list[Range] = []
    for start, end in sorted(parts):
        first, last = start // PAGE * PAGE, -(-end // PAGE) * PAGE
        if joined and first <= joined[-1][1]:
            first, last = joined[-1][0], max(last, joined.pop()[1])
        if last > first:
            joined.append((first, last))
    return joined


def _without_small_gaps(parts: list[Range], most: int) -> list[Range]:
    """Join ordered parts over all gaps except the ``most`` largest."""
    gaps = np.array([after[0] - before[1] for before, after in itertools.pairwise(parts)], np.int64)
    if len(gaps) <= most:
        return parts
    kept = np.sort(np.argsort(-gaps, kind="stable")[:most])
    firsts, lasts = [0, *(kept + 1)], [*kept, len(parts) - 1]
    return [(parts[first][0], parts[last][1]) for first, last in zip(firsts, lasts, strict=True)]
