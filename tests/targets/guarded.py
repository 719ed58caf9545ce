"""Arrays between inaccessible pages: an access past an edge ends the process with a traceback, or a kernel in the
emulator of CUDA with an error."""

from __future__ import annotations

import ctypes
import mmap
import sys

import numpy as np

LINE = 64
"""Bytes of a cache line. Kernels may assume that tensors start at one, so up to 63 bytes after an array are not
guarded."""
_NO_ACCESS = 0


def guarded(array: np.ndarray, line: int = LINE, *, before: bool = False) -> np.ndarray:
    """A copy of an array that ends right before an inaccessible page, rounded up to a multiple of ``line`` bytes; with
    ``before``, a copy that begins right after such a page. On Windows it is a plain copy."""
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
