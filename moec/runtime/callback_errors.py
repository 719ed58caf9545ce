"""Errors of functions that a program calls: the runtime makes another error of each on its way to the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def raised_as(error: Callable[[], BaseException | None]) -> Iterator[None]:
    """Raise ``error()``, where it is one, in the place of the exception that ends the block."""
    try:
        yield
    except Exception:
        own = error()
        if own is not None:
            raise own from None
        raise
