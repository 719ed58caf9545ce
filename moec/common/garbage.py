"""Python's collector of cyclic garbage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """While it lasts, cyclic garbage stays. For what makes many objects that are all needed, such as importing PyTorch
    and tracing: the collector would look at each of them again and again, for a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
