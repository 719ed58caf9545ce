"""Progress reports for work on many weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[str], None]
"""Callback with one line about the current step."""

_SECONDS = 0.5
"""Least seconds between two reports."""


def silent(_step: str) -> None:
    """Ignore all reports."""


def reported(
    items: Sequence[Item], size: Callable[[Item], int], progress: Progress, step: str, noun: str
) -> Iterator[Item]:
    """Yield the items and report progress: the current item, the share of bytes (``size``) that is done, and the
    remaining time at this rate: ``writing: weight 3 of 24, 120 of 960 MB, 8 s left``."""
    total, done, start = sum(map(size, items)), 0, time.monotonic()
    last = start
    for number, item in enumerate(items, 1):
        now = time.monotonic()
        if done and now - last >= _SECONDS:
            last, left = now, (now - start) * (total - done) / done
            share = f"{done / 1e6:.0f} of {total / 1e6:.0f} MB"
            progress(f"{step}: {noun} {number} of {len(items)}, {share}, {left:.0f} s left")
        yield item
        done += size(item)
