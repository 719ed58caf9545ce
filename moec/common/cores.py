"""The cores that this process may use."""

from __future__ import annotations

import functools
import os


@functools.cache
def available_cores() -> tuple[int, ...]:
    """List the cores that this process may use when first asked, before any thread pool narrows a thread's affinity."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))
