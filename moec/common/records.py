"""Reader of records: plain data of a file becomes dataclasses by the annotations of their fields, or is refused with
the field, its actual and its expected value.

A field is ``bool``, ``int``, ``float`` (whole numbers are some, too), ``str``, ``Any``, ``list[T]``, ``tuple[T, ...]``,
``dict[str, T]``, a ``Literal`` of texts, a dataclass, a TypedDict, or a union such as ``T | None``. ``Annotated`` with
a :class:`FieldRule` adds a condition. A dataclass allows no other fields, and
fields with a default may be missing. A TypedDict stays a dict, and allows other fields.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from moec.common.errors import MoecError
from moec.common.plain_files import parse_json

_Record = TypeVar("_Record")
_LARGEST = 1 << 62
"""Bound of whole numbers, which leaves room for sums in every integer of a library or system."""
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    types.NoneType: "null",
    list: "a list",
    tuple: "a list",
}


@dataclasses.dataclass(frozen=True)
class FieldRule:
    """Condition on a field in addition to its type, with the words for what is expected. Annotations with rules are
    named outside of the class that they are for: a lambda inside of it would see no names of its module."""

    holds: Callable[[Any], bool]
    expected: str


Size = Annotated[int, FieldRule(lambda number: number >= 0, "a whole number from 0 up")]


def read_record(
    kind: type[_Record], content: Any, where: str, advice: str, error: type[MoecError] = MoecError
) -> _Record:
    """Convert plain data to a ``kind``. Raises ``error`` for other data: one line that begins with ``where``, names the
    field, its actual and expected value, and ends with ``advice``."""
    try:
        return _read(kind, content)
    except _MismatchError as mismatch:
        raise error(f"{where}: {mismatch}; {advice}") from None


def read_json(
    kind: type[_Record], text: str | bytes, where: str, advice: str, error: type[MoecError] = MoecError
) -> _Record:
    """Parse a record as :func:`read_record`. Raises ``error`` for text that is not JSON, too."""
    try:
        content = parse_json(text)
    except ValueError as reason:
        raise error(f"{where}: is not JSON: {reason}; {advice}") from None
    return read_record(kind, content, where, advice, error)


def read_variant(
    kinds: Mapping[str, type[_Record]],
    tag: str,
    content: Mapping[str, Any],
    where: str,
    advice: str,
    error: type[MoecError] = MoecError,
) -> _Record:
    """Convert plain data to the kind that its field ``tag`` names; otherwise as :func:`read_record`."""
    name = content.get(tag)
    if not isinstance(name, str) or name not in kinds:
        raise error(f"{where}: {tag} is {_shown(name)}; expected one of {', '.join(map(repr, kinds))}; {advice}")
    fields = {key: value for key, value in content.items() if key != tag}
    return read_record(kinds[name], fields, where, advice, error)


class _MismatchError(Exception):
    """Data of another form. ``place``: path of the field, such as ``layers[3].name``."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place} {problem}" if place else problem)
        self._problem, self._place = problem, place

    def inside(self, place: str) -> _MismatchError:
        """Make the mismatch of a record that has this one at ``place``."""
        dot = "." if self._place and not self._place.startswith("[") else ""
        return _MismatchError(self._problem, f"{place}{dot}{self._place}")


def _read(kind: Any, value: Any) -> Any:
    """Convert a value to the type of an annotation. Raises _MismatchError."""
    if kind is Any or (kind is str and type(value) is str):  # texts are the most frequent values
        return value
    origin, arguments = _parts(kind)
    if origin in (typing.Union, types.UnionType):
        member = next((member for member in arguments if _fits(member, value)), None)
        if member is None:
            raise _mismatch(kind, value)
        return _read(member, value)
    if not _fits(kind, value):
        raise _mismatch(kind, value)
    if origin is Annotated:
        converted = _read(arguments[0], value)
        if not arguments[1].holds(converted):
            raise _mismatch(kind, value)
        return converted
    if origin in (list, tuple):
        return origin(_read_items(arguments[0], value))
    if origin is dict:
        return _read_named({}, arguments[1], value)
    if origin in _WORDS or origin is Literal:
        return float(value) if kind is float else value
    return _read_fields(kind, value)


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Split an annotation into what it is and its arguments, such as ``list`` and ``str``."""
    return typing.get_origin(kind) or kind, typing.get_args(kind)


def _read_items(kind: Any, values: Sequence[Any]) -> list[Any]:
    items: list[Any] = []
    try:
        for value in values:
            items.append(_read(kind, value))
    except _MismatchError as mismatch:
        raise mismatch.inside(f"[{len(items)}]") from None
    return items


def _read_named(kinds: Mapping[str, Any], other: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the values of an object. ``kinds``: annotations by name; ``other``: that of all other names."""
    name, fields = "", {}
    try:
        for name, value in content.items():
            fields[name] = _read(kinds.get(name, other), value)
    except _MismatchError as mismatch:
        raise mismatch.inside(name[:80]) from None
    return fields


def _read_fields(kind: Any, content: Mapping[str, Any]) -> Any:
    hints, needed = _fields_of(kind)
    missing = next((name for name in needed if name not in content), None)
    if missing is not None:
        raise _MismatchError(f"is missing; expected {_expected(hints[missing])}", missing)
    unknown = next((name for name in content if name not in hints), None)
    if unknown is not None and dataclasses.is_dataclass(kind):
        raise _MismatchError(f"has the unknown field {unknown[:80]!r}")
    return kind(**_read_named(hints, Any, content))


@functools.cache
def _fields_of(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """List the annotations of a record's fields by name, and the fields that may not be missing."""
    hints = typing.get_type_hints(kind, include_extras=True)
    if not dataclasses.is_dataclass(kind):
        return hints, [name for name in hints if name in kind.__required_keys__]
    fields, absent = dataclasses.fields(kind), dataclasses.MISSING
    needed = [field.name for field in fields if field.default is absent and field.default_factory is absent]
    return {field.name: hints[field.name] for field in fields}, needed


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value has the JSON type of an annotation, whatever is inside of it."""
    origin, arguments = _parts(kind)
    if origin is Annotated:
        return _fits(arguments[0], value)
    if origin in (list, tuple):
        return isinstance(value, (list, tuple))
    if origin is Literal:
        return type(value) is str and value in arguments
    if type(value) is int and abs(value) >= _LARGEST:
        return False
    return type(value) is (origin if origin in _WORDS else dict) or (kind is float and type(value) is int)


def _mismatch(kind: Any, value: Any) -> _MismatchError:
    return _MismatchError(f"is {_shown(value)}; expected {_expected(kind)}")


def _expected(kind: Any) -> str:
    origin, arguments = _parts(kind)
    if origin is Annotated:
        return arguments[1].expected
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_expected, arguments))
    return _WORDS.get(origin, "an object")


def _shown(value: Any) -> str:
    """Describe a value in JSON's terms, cut where it is long."""
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if isinstance(value, int) and abs(value) >= _LARGEST:  # printing thousands of digits takes long, or is refused
        return "a number of too many digits"
    return json.dumps(value, ensure_ascii=False)[:80]
