"""Inline assembly in CUDA C: the PTX text of each ``asm`` statement, and the expressions of its operands."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from moec.common.errors import UnsupportedError

_STATEMENT = re.compile(r"\b(?:asm|__asm__)\s*(volatile|__volatile__)?\s*\(")
_SEMICOLON = re.compile(r"\s*;")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_CONSTRAINT = re.compile(r'\s*"[=+]?\w+"\s*\(')
_ESCAPES = {r"\n": "\n", r"\t": "\t", r"\"": '"', r"\\": "\\"}


@dataclasses.dataclass(frozen=True)
class InlineAssembly:
    """One ``asm`` statement."""

    text: str
    """The PTX, with escapes replaced."""
    operands: tuple[str, ...]
    """The C++ expression of each operand, outputs first: number ``n`` is ``%n`` in the text."""
    volatile: bool
    """Whether it is declared volatile: the compiler then neither drops nor repeats it, nor reorders it with others."""
    orders_memory: bool
    """Whether "memory" is among its clobbers: no access to memory may then move past it."""
    begin: int
    end: int
    """The positions of the statement in the source, from ``asm`` to after its semicolon."""


def find_inline_assembly(source: str) -> Iterator[InlineAssembly]:
    """Every ``asm`` statement of a source, in order. Raises UnsupportedError for one that cannot be parsed."""
    position = 0
    while match := _STATEMENT.search(source, position):
        end = _closing(source, match.end())
        text, *lists = _sections(source[match.end() : end])
        operands = [operand for section in lists[:2] for operand in _operands(section)]
        position = _behind(source, end + 1)
        orders = len(lists) > 2 and '"memory"' in lists[2]
        yield InlineAssembly(_unquoted(text), tuple(operands), bool(match[1]), orders, match.start(), position)


def _behind(source: str, position: int) -> int:
    """The position after the semicolon that ends a statement, which may be missing inside of a macro."""
    semicolon = _SEMICOLON.match(source, position)
    return semicolon.end() if semicolon else position


def _skip(source: str, position: int) -> int:
    """The position after the string or character at ``position``."""
    string = _STRING.match(source, position)
    return string.end() if string else position + 1


def _closing(source: str, position: int) -> int:
    """The position of the parenthesis that closes the one opened right before ``position``. Raises UnsupportedError if
    there is none."""
    depth = 1
    while position < len(source):
        depth += {"(": 1, ")": -1}.get(source[position], 0)
        if depth == 0:
            return position
        position = _skip(source, position)
    raise UnsupportedError("CUDA source: an asm statement is not closed; expected a parenthesis behind its operands")


def _sections(statement: str) -> list[str]:
    """The parts of a statement between its colons: text, outputs, inputs, clobbers."""
    sections, begin, position, depth = [], 0, 0, 0
    while position < len(statement):
        character = statement[position]
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ":" and depth == 0:
            sections.append(statement[begin:position])
            begin = position + 1
        position = _skip(statement, position)
    return [*sections, statement[begin:]]


def _operands(section: str) -> Iterator[str]:
    """The expressions in a list of operands such as ``"=r"(a), "l"(&b[1])``."""
    position = 0
    while match := _CONSTRAINT.match(section, position):
        end = _closing(section, match.end())
        yield section[match.end() : end].strip()
        position = end + 1
        while position < len(section) and section[position] in ", \n\t":
            position += 1


def _unquoted(text: str) -> str:
    """The text of adjacent string literals."""
    joined = "".join(match[1] for match in _STRING.finditer(text))
    return re.sub(r"\\.", lambda escape: _ESCAPES.get(escape[0], escape[0]), joined).replace("%%", "%")
