"""Arrays behind which no byte may be touched: a read or write past their end ends the process with a traceback."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

LINE = 64
"""Kernels may assume that tensors start at a cache line, so up to 63 bytes of an array's last line are unguarded."""
_NO_ACCESS = 0


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy of an array whose last cache line ends where a page without access begins. Plain copy on Windows."""
    array = np.asarray(array, order="C")
    if array.size == 0 or sys.platform == "win32":
        return array.copy()
    page = mmap.PAGESIZE
    used = -(-array.nbytes // LINE) * LINE
    size = -(-used // page) * page
    memory = mmap.mmap(-1, size + page)
    start = np.frombuffer(memory, np.uint8).ctypes.data
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    if protect(ctypes.c_void_p(start + size), ctypes.c_size_t(page), _NO_ACCESS) != 0:
        raise OSError(ctypes.get_errno(), "mprotect refused to guard an array")
    copy = np.frombuffer(memory, np.uint8, array.nbytes, size - used).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
