"""Work that threads must not do at once: first calls, and libraries that allow one caller at a time.

``functools.cache`` is no lock: threads that call first at the same time all compute the result. That is fine for
values, and wrong for functions that register or start something, or whose result has an identity.

A fork waits until no thread is at such work, because its locks and half-made state would stay in the child forever.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_compiling = threading.RLock()
_first_calls = threading.RLock()
"""One lock for all functions, so that calls among them, in any order, cannot lead to a deadlock."""


def once(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Make a function of hashable arguments run once for each, by whichever thread comes first; the others wait for the
    result.

    A call that raises is repeated. Such functions must not be called while a module is imported, because the importing
    thread holds a lock that the first call may need.
    """
    results: dict[Any, Result] = {}

    @functools.wraps(function)
    def called(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        key = (arguments, tuple(sorted(named.items())))
        if key not in results:
            with _first_calls:
                if key not in results:
                    results[key] = function(*arguments, **named)
        return results[key]

    return called


def one_at_a_time(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let one thread at a time be in any of the functions that import or compile models; it may call another of them.
    TVM, PyTorch's exporter and ONNX's registry of operators keep state for the whole process meanwhile."""

    @functools.wraps(function)
    def called(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with _compiling:
            return function(*arguments, **named)

    return called


def _before_fork() -> None:
    _compiling.acquire()
    _first_calls.acquire()


def _after_fork() -> None:
    _first_calls.release()
    _compiling.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
