"""Last words: what a process still has to say when it is told to end, such as which other process was lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from moec.common.errors import LostRankError

_speakers: list[Callable[[], str | None]] = []


@contextlib.contextmanager
def last_words(speaker: Callable[[], str | None]) -> Iterator[None]:
    """Context in which ``speaker()`` is asked for a line, or None, before the process ends by a signal. A LostRankError
    that ends the block is a last word from then on: the signal may come before somebody prints the error."""
    _speakers.append(speaker)
    try:
        yield
    except LostRankError as error:
        line = str(error)
        _speakers.append(lambda: line)
        raise
    finally:
        _speakers.remove(speaker)


def spoken() -> list[str]:
    """Ask all speakers for their lines."""
    return [line for speaker in list(_speakers) if (line := speaker()) is not None]
