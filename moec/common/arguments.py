"""Checks of the API's arguments: one line that says the expected and the actual value."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from moec.common.errors import MoecError, OptionError

_Parameters = ParamSpec("_Parameters")
_Returned = TypeVar("_Returned")
_Options = TypeVar("_Options")


def shown(value: Any) -> str:
    """Describe a value in messages: short, with its type."""
    text = repr(value) if isinstance(value, (str, int, float, bytes, bool)) else ""
    return f"{text} of type {type(value).__name__}" if 0 < len(text) <= 60 else f"of type {type(value).__name__}"


def suggestion(name: str, names: Iterable[str]) -> str:
    """Write ``; did you mean 'simplify'?`` for a name that is similar to one of ``names``, else nothing."""
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def known_options(function: Callable[_Parameters, _Returned]) -> Callable[_Parameters, _Returned]:
    """Make a function raise an OptionError for unknown arguments, which names the most similar option, and all of
    them."""
    signature = inspect.signature(function)
    names = [parameter.name for parameter in signature.parameters.values() if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*arguments: _Parameters.args, **options: _Parameters.kwargs) -> _Returned:
        for name in options:
            if name not in signature.parameters:
                nearest, listed = suggestion(name, signature.parameters), ", ".join(names)
                raise OptionError(f"{function.__name__} has no option {name!r}{nearest} (options: {listed})")
        try:
            signature.bind(*arguments, **options)
        except TypeError as error:
            raise OptionError(
                f"{function.__name__}: {error}; its arguments: {', '.join(signature.parameters)}"
            ) from None
        return function(*arguments, **options)

    return checked


def options_of(kind: Callable[..., _Options], arguments: Mapping[str, Any]) -> _Options:
    """Make a dataclass of options from the arguments of a function (``locals()``) that have the names of its fields."""
    return kind(**{name: arguments[name] for name in inspect.signature(kind).parameters if name in arguments})


def check_kind(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise MoecError unless the value is of one of ``kinds``; a bool is no number."""
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise MoecError(f"{name} is {shown(value)}; expected {expected}")


def check_path(name: str, value: Any) -> None:
    """Raise MoecError unless the value is a path of text that a file system can have."""
    check_kind(name, value, (str, os.PathLike), "a path: a string or a pathlib.Path")
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise MoecError(f"{name} is {text!r}; expected a path of text, not empty and without null characters")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise MoecError unless the value is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise MoecError(f"{name} is {shown(value)}; expected one of {', '.join(map(repr, choices))}")


_MOST_TOKENS = 2**24


def token_counts(name: str, text: str, least: int = 0) -> list[int]:
    """Parse ``0,2048``. Raises MoecError for other text, and for numbers below ``least`` or beyond what kernels count
    to."""
    parts = text.split(",")
    counts = [int(part) if part.strip().isdecimal() and len(part) < 20 else -1 for part in parts]
    if not all(least <= count <= _MOST_TOKENS for count in counts):
        raise MoecError(
            f"{name} is {text[:80]!r}; expected numbers of tokens from {least} to {_MOST_TOKENS}, separated by commas: "
            "1,2048"
        )
    return counts


def check_optional_text(**values: Any) -> None:
    """Raise MoecError unless each value is a string or None."""
    for name, value in values.items():
        check_kind(name, value, (str, type(None)), "a string or None")


def check_flags(**values: Any) -> None:
    """Raise MoecError unless each value is True or False."""
    for name, value in values.items():
        check_kind(name, value, bool, "True or False")


def check_optional_flag(name: str, value: Any) -> None:
    """Raise MoecError unless the value is True, False or None."""
    check_kind(name, value, (bool, type(None)), "True, False or None")
