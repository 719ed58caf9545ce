"""Errors in functions that a program calls: the runtime replaces them by its own on their way to the caller."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def raised_as(error: Callable[[], BaseException | None]) -> Iterator[None]:
    """Context that raises ``error()``, unless that is None, in place of the exception that ends the block."""
    try:
        yield
    except Exception:
        own = error()
        if own is not None:
            raise own from None
        raise
