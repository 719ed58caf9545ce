"""Reader of whole untrusted files: plain ones, of limited size, as bytes, text or JSON."""

from __future__ import annotations

import collections
import json
import os
import stat
from collections.abc import Callable
from typing import Any

from moec.common.errors import MoecError, one_line

_MOST_LEVELS = 100
"""Levels of JSON, deeper than any file that moec reads has: what walks the data then needs no limit of its own."""
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def size_of(path: str | os.PathLike[str]) -> int:
    """Return the size of a plain file. Raises MoecError for anything else: reading a pipe or a device may never end."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise MoecError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise MoecError(f"{path}: cannot be read: is {kind}; expected a plain file")
    return status.st_size


def read_bytes(path: str | os.PathLike[str], most: int) -> bytes:
    """Read all of a plain file. Raises MoecError where it cannot be read or has more than ``most`` bytes."""
    size = size_of(path)
    if size > most:
        raise MoecError(f"{path}: has {size} bytes; expected at most {most} of such a file")
    try:
        with open(path, "rb") as file:
            return file.read(size)  # Python allocates as much memory as it is asked to read
    except OSError as error:
        raise MoecError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_text(path: str | os.PathLike[str], most: int) -> str:
    """Read a plain file in UTF-8. Raises MoecError as :func:`read_bytes`, and for other bytes."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise MoecError(f"{path}: cannot be read as text: {error}") from error


def parse_json(
    text: str | bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None, *, strict: bool = False
) -> Any:
    """Parse JSON in UTF-8; ``object_hook`` replaces objects, as in the module ``json``.

    Raises ValueError, whose text is the reason, for text that is no JSON, has more than 100 levels or numbers of
    thousands of digits, or holds halves of characters (lone surrogates), which no file and no library accepts.
    ``strict``: also for NaN and infinities, which files of models have although JSON lacks them, and for names that
    occur twice in an object, of which other readers take the first.
    """
    constant, pairs = (_refuse_constant, _object_once) if strict else (None, None)
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(text, object_hook=object_hook, parse_constant=constant, object_pairs_hook=pairs)
        if _is_deep(content):
            raise RecursionError
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError(f"it has more than {_MOST_LEVELS} levels") from None
    except ValueError as error:  # of json, of int, of UTF-8
        raise ValueError(one_line(error)) from None
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _object_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"an object has the name {names.most_common(1)[0][0][:60]!r} twice")
    return content


def _is_deep(content: Any) -> bool:
    """Whether lists and objects have more than ``_MOST_LEVELS`` levels. Looks at one level after the other, without
    recursion."""
    level = [content]
    for _ in range(_MOST_LEVELS):
        groups = [outer for outer in level if isinstance(outer, (dict, list))]
        level = [inner for group in groups for inner in (group.values() if isinstance(group, dict) else group)]
    return any(isinstance(inner, (dict, list)) for inner in level)
