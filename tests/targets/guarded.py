"""Arrays beside which no byte may be touched: a read or write past an edge ends the process with a traceback, or a
kernel in the emulator of CUDA with an error."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

LINE = 64
"""Kernels may assume that tensors start at a cache line, so up to 63 bytes of an array's last line are unguarded."""
_NO_ACCESS = 0


def guarded(array: np.ndarray, line: int = LINE, *, before: bool = False) -> np.ndarray:
    """A copy of an array whose last line of so many bytes ends where a page without access begins; or, with
    ``before``, one that begins where such a page ends. Plain copy on Windows."""
    array = np.asarray(array, order="C")
    if array.size == 0 or sys.platform == "win32":
        return array.copy()
    page = mmap.PAGESIZE
    used = -(-array.nbytes // line) * line
    size = -(-used // page) * page
    memory = mmap.mmap(-1, page + size + page)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (start, start + page + size):
        if protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), _NO_ACCESS) != 0:
            raise OSError(ctypes.get_errno(), "mprotect refused to guard an array")
    first = page if before else page + size - used
    copy = np.frombuffer(memory, np.uint8, array.nbytes, first).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
