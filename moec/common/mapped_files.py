"""Files mapped into memory, and letting go of what was read from them.

Pages that were read count as the process's memory until they are let go of. They stay in the system's cache, from where
they come back at once should they be read again.
"""

from __future__ import annotations

import mmap
import os
import weakref

import numpy as np

_open_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def map_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The bytes of a file that is not empty, read-only. The map lives as long as any array over it."""
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _open_maps.add(mapped)
    return np.frombuffer(mapped, np.uint8)


def release_pages() -> None:
    """Let go of the pages of all mapped files: to be called after each large piece of work on weights."""
    if not hasattr(mmap, "MADV_DONTNEED"):  # no such call on Windows, which trims by itself
        return
    for mapped in list(_open_maps):
        mapped.madvise(mmap.MADV_DONTNEED)
