"""Time limits for calls that have none of their own, such as those to the store of a process that was stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, ask: Callable[[], Result]) -> Result:
    """Return ``ask()``, or raise what it raises. A thread calls it, which is left alone after a time: TimeoutError."""
    answers: list[Result] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="moec-patience", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError(f"timed out after {seconds:g} s")
    return answers[0]
