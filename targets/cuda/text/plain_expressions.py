"""Plain expressions in generated CUDA C, where TVM puts parentheses around every operation and a type before every
number.

The text means the same to the compiler: parentheses go only where the order of evaluation stays, casts only where C
converts the operand by itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from moec.targets.cuda.text.syntax import KERNEL

_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|(?P<float>-?0x[\da-f.]+p[-+]\d+f?)/\*[^*]*\*/|[A-Za-z_][\w]*|\.?\d[\w.]*(?:(?<=[eE])[-+]\d+)?'
    r"|<<=|>>=|\+\+|--|->|::|<<|>>|[<>=!+*/%&|^-]=|&&|\|\||\s+|."
)
_NAMED_TYPE = re.compile(r"[A-Za-z_][\w ]*(?: ?\*)*")
_TYPE = re.compile(
    r"(?:(?:const|(?:un)?signed|long|short|u?int\w*|u?char\w*|float\w*|double\w*|half\w*|bool|void) ?)+\**"
)
"""Types that C and CUDA know, which make a cast also of what stands before an operator with one operand."""
_PRECEDENCE = {",": 0, "=": 1, "?": 2, ":": 2, "||": 3, "&&": 4, "|": 5, "^": 6, "&": 7, "==": 8, "!=": 8}
_PRECEDENCE |= {"<": 9, ">": 9, "<=": 9, ">=": 9, "<<": 10, ">>": 10, "+": 11, "-": 11, "*": 12, "/": 12, "%": 12}
_PRECEDENCE |= dict.fromkeys(("+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="), 1)
_UNARY, _POSTFIX, _ATOM = 14, 15, 16
_PREFIXES = ("-", "+", "!", "~", "*", "&", "++", "--")
_SEPARATORS = (";", "{", "}", "return")
_BITWISE = (5, 6, 7, 10)
"""Precedences that a reader does not know by heart: operations next to them keep their parentheses."""
_ARITHMETIC = range(5, 13)
_CLOSING = {"(": ")", "[": "]"}
_HAS_WORK = re.compile(r"[(\[]|0x")
_KEPT_AS_IS = re.compile(r"\w<[\w ,:*]*>\(|\basm\b|^ *#")
"""Lines with templates' arguments, assembly or directives."""


def with_plain_expressions(source: str) -> str:
    """The source with the fewest parentheses, ``1.0f`` for ``0x1p+0f/*1.000000e+00*/``, ``16u`` for ``(uint)16``, and
    without the casts of operands that C converts to ``int64_t`` by itself: in TVM's text, the operands of an operation
    have one type."""
    return KERNEL.sub(lambda kernel: "".join(map(plain, kernel[0].splitlines(keepends=True))), source)


def plain(line: str) -> str:
    """One line of a kernel, rewritten."""
    ends_elsewhere = any(line.count(opening) != line.count(closing) for opening, closing in _CLOSING.items())
    if ends_elsewhere or _KEPT_AS_IS.search(line) or not _HAS_WORK.search(line):
        return line
    return _text(_simplified(_items(_TOKEN.finditer(line), "")))


@dataclasses.dataclass(frozen=True)
class _Group:
    """Brackets and what is between them."""

    opening: str
    items: list[_Item]


_Item: TypeAlias = "str | _Group"
"""A token (spaces are tokens, too), or a group."""


def _items(tokens: Iterator[re.Match[str]], until: str) -> list[_Item]:
    """The tokens up to a closing bracket, with groups for brackets."""
    items: list[_Item] = []
    for match in tokens:
        token = match[0]
        if token == until:
            break
        if token in _CLOSING:
            items.append(_Group(token, _items(tokens, _CLOSING[token])))
        else:
            items.append(_decimal(match["float"]) if match["float"] else token)
    return items


def _text(items: Sequence[_Item]) -> str:
    return "".join(
        item if isinstance(item, str) else f"{item.opening}{_text(item.items)}{_CLOSING[item.opening]}"
        for item in items
    )


def _simplified(items: list[_Item]) -> list[_Item]:
    """The items without needless parentheses and casts, those in groups first."""
    inside = [item if isinstance(item, str) else _Group(item.opening, _simplified(item.items)) for item in items]
    plain_types = _without_casts(inside)
    result: list[_Item] = []
    for at, item in enumerate(plain_types):
        if isinstance(item, _Group) and _is_needless(plain_types, at):
            result += item.items
        else:
            result.append(item)
    return result


def _is_needless(items: Sequence[_Item], at: int) -> bool:
    """Whether the group at a place can do without its brackets."""
    group = items[at]
    assert isinstance(group, _Group)
    before, after = _neighbour(items, at, -1), _neighbour(items, at, 1)
    if group.opening != "(" or _is_called(items, at) or _is_cast(items, at) or not group.items:
        return False
    inner = _lowest(group.items)
    if inner == _PRECEDENCE[","]:
        return False
    return _binds(inner, _strength(items, before), left=True) and _binds(inner, _strength(items, after), left=False)


def _binds(inner: int, outer: int, *, left: bool) -> bool:
    """Whether an operation may stand without parentheses next to an operator. ``left``: on its right side."""
    if outer >= _UNARY:
        return inner >= _POSTFIX
    if inner < _UNARY and outer > 4 and (inner in _BITWISE or outer in _BITWISE):
        return False
    if inner == 4 and outer == 3:
        return False
    return inner > outer or (inner == outer > 2 and not left)


def _strength(items: Sequence[_Item], at: int | None) -> int:
    """The precedence of the operator at a place beside a group; -1 for none."""
    if at is None:
        return -1
    item = items[at]
    if isinstance(item, _Group):
        return _UNARY if _is_cast(items, at) else _POSTFIX
    if item in _SEPARATORS or item == ",":
        return -1
    if item in (".", "->", "++", "--"):
        return _POSTFIX
    if _is_prefix(items, at):
        return _UNARY
    return _PRECEDENCE.get(item, _ATOM)


def _lowest(items: Sequence[_Item]) -> int:
    """The precedence of the operation that is done last."""
    places = [at for at, item in enumerate(items) if not _is_space(item)]
    binary = [
        _PRECEDENCE[item]
        for at in places
        if isinstance(item := items[at], str) and item in _PRECEDENCE and not _is_prefix(items, at)
    ]
    if binary:
        return min(binary)
    if _is_prefix(items, places[0]) or _is_cast(items, places[0]):
        return _UNARY
    return _ATOM if len(places) == 1 else _POSTFIX


def _is_prefix(items: Sequence[_Item], at: int) -> bool:
    """Whether the token at a place is an operator in front of its only operand."""
    if items[at] not in _PREFIXES:
        return False
    before = _neighbour(items, at, -1)
    if before is None:
        return True
    item = items[before]
    if isinstance(item, _Group):
        return _is_cast(items, before)
    return item in _SEPARATORS or item in _PRECEDENCE or item in _PREFIXES


def _is_called(items: Sequence[_Item], at: int) -> bool:
    """Whether a group holds the arguments of what stands before it."""
    before = _neighbour(items, at, -1)
    if before is None:
        return False
    item = items[before]
    if isinstance(item, _Group):
        return not _is_cast(items, before)
    return item != "return" and (item[0].isalpha() or item[0] in '_"')


def _is_cast(items: Sequence[_Item], at: int) -> bool:
    group, after = items[at], _neighbour(items, at, 1)
    if isinstance(group, str) or group.opening != "(" or after is None or _is_called(items, at):
        return False
    kind, operand = _text(group.items), items[after]
    if isinstance(operand, _Group) or operand[0].isalnum() or operand[0] in "_.":
        return _NAMED_TYPE.fullmatch(kind) is not None
    return operand[0] in "-&*!~" and (kind.endswith("*") or _TYPE.fullmatch(kind) is not None)


def _without_casts(items: list[_Item]) -> list[_Item]:
    """The items without casts that C does by itself, and with suffixes for types of numbers.

    Each operand still has parentheses of its own, so that one operator stands between two of them."""
    result: list[_Item] = []
    for at, item in enumerate(items):
        before = _neighbour(items, at, -1)
        cast = "" if before is None or not _is_cast(items, before) else _text([items[before]])
        if _is_number(item) and cast == "(uint)":
            result[-1:] = [f"{item}u"]
        elif _is_number(item) and cast == "(int64_t)" and before is not None:
            converted = _is_assigned(items, before) or _is_converted(items, before) or _converts_other(items, at)
            result[-1:] = [item] if converted else [*result[-1:], item]
        elif isinstance(item, _Group) and _is_widening(item) and not _is_called(items, at) and _is_converted(items, at):
            result += item.items[1:]
        else:
            result.append(item)
    return result


def _is_widening(group: _Group) -> bool:
    """Whether parentheses hold a cast of a variable or an element to ``int64_t``, and nothing else."""
    cast, *operand = group.items or [""]
    return (
        group.opening == "("
        and _text([cast]) == "(int64_t)"
        and isinstance(first := (operand or [""])[0], str)
        and re.match(r"[A-Za-z_]", first) is not None
        and _lowest(operand) >= _POSTFIX
    )


def _is_converted(items: Sequence[_Item], at: int) -> bool:
    """Whether what stands at a place is the right operand of an operation whose left one has the type ``int64_t``."""
    before = _neighbour(items, at, -1)
    if before is None or _strength(items, before) not in _ARITHMETIC:
        return False
    left = _neighbour(items, before, -1)
    if left is None:
        return False
    sole = _neighbour(items, left, -1)
    return not _is_number(items[left]) or (sole is not None and _is_cast(items, sole))


def _converts_other(items: Sequence[_Item], at: int) -> bool:
    """Whether a number is the left operand of an operation on a variable, which has the type that the number had."""
    operator = _neighbour(items, at, 1)
    if operator is None or _strength(items, operator) not in _ARITHMETIC or items[operator] in ("<<", ">>"):
        return False
    other = _neighbour(items, operator, 1)
    return other is not None and isinstance(word := items[other], str) and (word[0].isalpha() or word[0] == "_")


def _neighbour(items: Sequence[_Item], at: int, step: int) -> int | None:
    """The place of the next item in a direction that is not a space."""
    at += step
    while 0 <= at < len(items) and _is_space(items[at]):
        at += step
    return at if 0 <= at < len(items) else None


def _is_number(item: _Item) -> bool:
    return isinstance(item, str) and item[0].isdigit()


def _is_assigned(items: Sequence[_Item], cast: int) -> bool:
    """Whether a number after a cast is all that a variable gets."""
    before, number = _neighbour(items, cast, -1), _neighbour(items, cast, 1)
    after = None if number is None else _neighbour(items, number, 1)
    return before is not None and items[before] == "=" and after is not None and items[after] == ";"


def _is_space(item: _Item) -> bool:
    return isinstance(item, str) and item.isspace()


def _decimal(text: str) -> str:
    """A hexadecimal float as the shortest decimal number that has its value."""
    number = float.fromhex(text.removesuffix("f"))
    return f"{np.float32(number)!s}f" if text.endswith("f") else repr(number)
