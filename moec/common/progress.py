"""Work on many weights, told while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Progress = Callable[[str], None]
"""Takes one line that says what is being done."""

_SECONDS = 0.5
"""How often at most something is told."""


def silent(_step: str) -> None:
    """The progress of work that nobody watches."""


def told(
    items: Sequence[Item], size: Callable[[Item], int], progress: Progress, step: str, noun: str
) -> Iterator[Item]:
    """Yield the items. In between ``progress`` hears which of them is at work, how much of their bytes (``size``) is
    done, and how long the rest takes at this rate: ``writing: weight 3 of 24, 120 of 960 MB, 8 s left``."""
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
