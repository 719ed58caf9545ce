"""Random damage to JSON: other values at places of a document, and text that parsers differ on."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

Path = tuple[Any, ...]

VALUES = (
    *(None, True, False, -1, 0, 1, 2, 7, 2**31 - 1, 2**31, 2**63, 2**64, 10**30, -0.0, 1.5, 1e308, float("nan")),
    *("", " ", "x", "n", "float32", "int64", "object", "..", "../../etc/passwd", "/etc/passwd", "a\0b", "é" * 300),
    *([], {}, [[]], [None], {"x": None}, [0] * 1000, ["n"] * 70),
)
"""What a place is set to."""

_RAW = (
    *("1e999", "-1e999", "NaN", "-Infinity", "9" * 5000, "-" + "9" * 400, "0." + "0" * 400 + "1", "1e-400"),
    *('"\\ud800"', '"\\u0000"', '"' + "a" * 100_000 + '"', "[" * 600 + "]" * 600, "[" * 200_000, "{" * 10, "'x'", "01"),
    *('{"a": 1, "a": 2}', "", ",", "tru", '"\\x"', '"\n"'),
)
"""Texts of values: numbers and strings that Python holds badly, and what is no JSON."""
_HOLE = "a place for raw text"


def places(value: Any, at: Path = ()) -> Iterator[Path]:
    """The paths of all values inside of a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def at(value: Any, where: Path) -> Any:
    """The value at a path. Raises LookupError or TypeError where there is none."""
    for key in where:
        value = value[key]
    return value


def change(content: Any, kind: str, where: Path, value: Any) -> None:
    """Make one change, named as in :data:`CHANGES`; none where an earlier one has removed the place."""
    try:
        CHANGES[kind](at(content, where[:-1]), where[-1], value)
    except (LookupError, TypeError, AttributeError, ValueError):
        return


def damage(content: Any, rng: random.Random, among: Callable[[Path], bool] = lambda _: True) -> tuple[bytes, str]:
    """The bytes of a document after one to three changes of places that are ``among``, and the changes in words."""
    content = json.loads(json.dumps(content))
    reported, raw = [], ""
    for _ in range(rng.choice([1, 1, 2, 3])):
        results = [where for where in places(content) if among(where)]
        if not results:
            break
        # Long lists would have nearly all places: each length of a path counts the same.
        depth = rng.choice(sorted({len(where) for where in results}))
        where = rng.choice([where for where in results if len(where) == depth])
        kind = rng.choice([*CHANGES, "set", "set", "raw"])
        value = rng.choice(VALUES) if kind == "set" else _HOLE if kind == "raw" else rng.random()
        change(content, "set" if kind == "raw" else kind, where, value)
        raw = rng.choice(_RAW) if kind == "raw" else raw
        reported.append(f"{kind} {'/'.join(map(str, where))[:80]} {repr(raw if kind == 'raw' else value)[:40]}")
    data = json.dumps(content).replace(json.dumps(_HOLE), raw).encode()
    if rng.random() < 0.1:
        name = rng.choice(list(_AS_BYTES))
        data = _AS_BYTES[name](data)
        reported.append(name)
    return data, "; ".join(reported)


def _set(parent: Any, key: Any, value: Any) -> None:
    parent[key] = copy.deepcopy(value)  # a later change may be one of the value, which other cases are given too


def _delete(parent: Any, key: Any, _value: Any) -> None:
    del parent[key]


def _double(parent: Any, key: Any, _value: Any) -> None:
    """A list's element twice; a dictionary's under a second name."""
    if isinstance(parent, list):
        parent.insert(key, parent[key])
    else:
        parent[f"{key}_"] = parent[key]


def _swap(parent: Any, key: Any, _value: Any) -> None:
    """With its neighbour."""
    keys = list(range(len(parent))) if isinstance(parent, list) else list(parent)
    other = keys[(keys.index(key) + 1) % len(keys)]
    parent[key], parent[other] = parent[other], parent[key]


def _vary(parent: Any, key: Any, value: Any) -> None:
    """Something near: another number, a text with a letter changed, a shorter list."""
    old = parent[key]
    if isinstance(old, (int, float)):
        parent[key] = old + (1 if value < 0.5 else -1) if value < 0.8 else old * 4096
    elif isinstance(old, str) and old:
        place = int(value * len(old))
        parent[key] = f"{old[:place]}{chr(97 + place % 26)}{old[place + 1 :]}"
    elif isinstance(old, list):
        parent[key] = old[: int(value * len(old))]


CHANGES: dict[str, Callable[[Any, Any, Any], None]] = {
    "set": _set,
    "delete": _delete,
    "double": _double,
    "swap": _swap,
    "vary": _vary,
}
"""By a name: what is done with a key of a dictionary or an index of a list."""

_AS_BYTES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
    "not UTF-8": lambda data: data.replace(b'"', b'"\xff\xfe', 3),
    "text behind it": lambda data: data + b"{}",
    "in a list": lambda data: b"[" + data + b"]",
    "empty": lambda data: b"",
    "null": lambda data: b"null",
    "deep": lambda data: b"[" * 100_000,
}
