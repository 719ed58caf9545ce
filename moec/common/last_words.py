"""Last words: what a process still has to say when it is told to end, such as which other process was lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

_speakers: list[Callable[[], str | None]] = []


@contextlib.contextmanager
def last_words(speaker: Callable[[], str | None]) -> Iterator[None]:
    """Context in which ``speaker()`` is asked for a line, or None, before the process ends by a signal."""
    _speakers.append(speaker)
    try:
        yield
    finally:
        _speakers.remove(speaker)


def spoken() -> list[str]:
    """Ask all speakers for their lines."""
    return [line for speaker in list(_speakers) if (line := speaker()) is not None]
