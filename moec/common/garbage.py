"""Python's collector of cyclic garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

_NEW_OBJECTS = 10_000


def collect_less_often() -> None:
    """Have this process look for garbage each time that 10,000 objects are new, instead of Python's 700 to 2,000:
    importing libraries and compiling make many objects that stay, which took a tenth of the time."""
    gc.set_threshold(_NEW_OBJECTS)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Context in which cyclic garbage is not collected. It is for work that makes many objects which are all needed,
    such as importing PyTorch and tracing: the collector would examine each of them repeatedly, for a fifth of the
    time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
