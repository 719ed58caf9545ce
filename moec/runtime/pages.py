"""Placement of weights in memory: mapped from their file, or copied into huge pages.

With more 4 KiB pages than a processor's tables hold, it finds each page slowly, and the cost of few tokens is reading
weights. Some systems map files in huge pages (2 MiB) by themselves. On others a copy in huge pages is read faster, at
the price of its memory and the time to make it.

Truncating a mapped file removes memory: the system ends a process that reads there (SIGBUS). :class:`FileMaps` checks
the file's size before every run, so that truncation between runs is an error. Truncation during a run still ends the
process, because Python cannot handle that signal; a copy of the weights (``pages="huge"``) is safe from it. moec itself
never truncates files: it replaces them by new ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import pathlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from moec.common.cores import available_cores
from moec.common.errors import ArtifactError, MoecError
from moec.common.free_memory import available_memory

Pages = Literal["auto", "mapped", "huge", "streamed"]
HUGE_PAGE = 2 << 20
WORTH_COPYING = 16 << 20
"""Bytes of weights from which huge pages matter: about as many as processors find without them. One token through 50 MB
of experts, of which it uses 13, took 0.47 ms (median) in small pages and 0.44 in huge ones."""

_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_OWN_MAPPINGS = pathlib.Path("/proc/self/smaps")
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ")
_PROBES = 16
_CHUNK = 32 * HUGE_PAGE
_MOST_COPYING_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Placement:
    """Kind of pages that weights are in, and the reason."""

    pages: Literal["mapped", "huge", "streamed"]
    reason: str


def place_file(
    path: pathlib.Path, pages: Pages = "auto", ranges: Sequence[tuple[int, int]] | None = None
) -> tuple[np.ndarray, Placement]:
    """Load the bytes of a file, private to the process if anything writes to them. ``ranges``: parts of the file
    (start, end) that are needed; only these take memory. None: all of it.

    ``auto`` maps the file. It copies it into huge pages instead where these are available, the system did not map it so
    by itself, and the copy takes at most half of the free memory. ``huge`` copies wherever possible.

    Raises MoecError when huge pages are requested and not available, ArtifactError when the file cannot be read.
    """
    size = path.stat().st_size
    needed = [(0, size)] if ranges is None else ranges
    used = sum(end - start for start, end in needed)
    if pages == "mapped":
        return _map(path, size), Placement("mapped", "as asked for")
    if pages == "huge":
        obstacle = _obstacle(used, available_memory())
        if obstacle:
            raise MoecError(f"{path}: cannot be held in huge pages: {obstacle}; use pages=auto or pages=mapped")
        return _copy(path, size, needed), Placement("huge", "as asked for")
    if used < WORTH_COPYING:
        return _map(path, size), Placement("mapped", f"less than {WORTH_COPYING >> 20} MiB of weights")
    obstacle = _obstacle(used, available_memory() // 2)
    if obstacle:
        return _map(path, size), Placement("mapped", obstacle)
    mapped = _map(path, size)
    if _is_in_huge_pages(mapped):
        return mapped, Placement("mapped", "the system maps the file in huge pages")
    return _copy(path, size, needed), Placement("huge", "the system maps the file in small pages")


class FileMaps:
    """Files in which some of the arrays are mapped."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        maps = (_map_behind(array) for array in arrays)
        self._maps = list({id(mapped): mapped for mapped in maps if mapped is not None}.values())

    def check(self, where: str) -> None:
        """Raise ArtifactError where a file has become shorter than its map."""
        for mapped in self._maps:
            if mapped.size() < len(mapped):
                raise ArtifactError(
                    f"{where}: the file of its weights was cut to {mapped.size()} bytes while it was in use; expected "
                    f"{len(mapped)}; compile the model again and load it anew"
                )


def _map_behind(array: np.ndarray) -> mmap.mmap | None:
    """Find the map of memory that an array is a view of."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner if isinstance(owner, mmap.mmap) else None


def new_memory(size: int, *, huge: bool) -> np.ndarray:
    """Allocate zero bytes that start where a huge page can: in huge pages as far as the system has them when it is
    first written to, or in small ones. Raises OSError when memory is insufficient."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return np.zeros(size, np.uint8)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory, Python's default, follows other rules
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE if huge else mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    start = -array.ctypes.data % HUGE_PAGE
    return array[start : start + size]


def _obstacle(size: int, allowed: int) -> str | None:
    """Explain why a copy in huge pages cannot be made. Returns None where it can."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return "this system has no huge pages to ask for"
    try:
        setting = _SETTING.read_text(encoding="ascii")
    except OSError:
        return f"this system has no huge pages to ask for (no {_SETTING})"
    if "[never]" in setting:
        return f"the system's administrator has switched huge pages off ({_SETTING} says never)"
    if size > allowed:
        return f"a copy takes {size >> 20} MiB and {allowed >> 20} MiB may be used"
    return None


def _map(path: pathlib.Path, size: int) -> np.ndarray:
    return np.memmap(path, np.uint8, mode="c") if size else np.empty(0, np.uint8)


def _is_in_huge_pages(mapped: np.ndarray) -> bool:
    """Whether most pages of a mapped file are huge ones, judged by a few that are read."""
    mapped[np.linspace(0, mapped.size - 1, _PROBES).astype(np.int64)].sum()
    return bytes_in_huge_pages(mapped) >= _PROBES * HUGE_PAGE * 3 // 4


def bytes_in_huge_pages(memory: np.ndarray) -> int:
    """Count the bytes in huge pages of the mapping that contains an array; 0 where the system does not tell."""
    try:
        text = _OWN_MAPPINGS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    inside, total = False, 0
    for line in text.splitlines():
        mapping = _MAPPING.match(line)
        if mapping:
            inside = int(mapping[1], 16) <= memory.ctypes.data < int(mapping[2], 16)
        elif inside and line.startswith(("FilePmdMapped:", "AnonHugePages:")):
            total += int(line.split()[1]) << 10
    return total


def _copy(path: pathlib.Path, size: int, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Copy ranges of a file of ``size`` bytes into huge pages with several threads; each gets pages near its core."""
    try:
        memory = new_memory(size, huge=True)
    except OSError as error:
        raise MoecError(f"{path}: the system has no {size >> 20} MiB for a copy; use pages=mapped") from error
    with path.open("rb") as file, ThreadPoolExecutor(min(len(available_cores()), _MOST_COPYING_THREADS)) as threads:
        chunks = [
            threads.submit(_read_into, memory, file.fileno(), start, min(start + _CHUNK, end))
            for first, end in ranges
            for start in range(first, end, _CHUNK)
        ]
        for chunk in chunks:
            chunk.result()
    return memory


def _read_into(memory: np.ndarray, file: int, start: int, end: int) -> None:
    while start < end:
        count = os.preadv(file, [memory[start:end].data], start)
        if count == 0:
            raise ArtifactError(f"the file of the weights ends at byte {start}; it was truncated while it was read")
        start += count
