"""The text of a C++ file and its HLS pragmas, for the linter and the simulation.

No compiler is involved: both must work on templates that are not instantiated, and must name places in the delivered
file.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping

from moec.common.errors import MoecError

_SKIPPED = re.compile(
    r'//(?:[^\n\\]|\\.)*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|^[ \t]*#(?:[^\n\\]|\\.)*',
    re.DOTALL | re.MULTILINE,
)
_PRAGMA = re.compile(r"\s*#\s*pragma\s+HLS\s+(\w+)(.*)", re.DOTALL | re.IGNORECASE)
_OPTION = re.compile(r"(\w+)(?:\s*=\s*([^\s=]+))?|\S+")


@dataclasses.dataclass(frozen=True)
class Pragma:
    """``#pragma HLS DIRECTIVE option name=value ...``. Options that are only named have the value ''."""

    directive: str
    options: Mapping[str, str]
    unreadable: tuple[str, ...]
    """Words that are not options."""
    start: int
    end: int

    @property
    def words(self) -> str:
        return " ".join(
            [self.directive, *(f"{name}={value}" if value else name for name, value in self.options.items())]
        )


@dataclasses.dataclass(frozen=True)
class Source:
    """A C++ file. ``name``: of the file in messages."""

    name: str
    text: str

    @functools.cached_property
    def code(self) -> str:
        """The text with comments, the contents of strings and preprocessor lines blanked, so that positions stay."""
        return _SKIPPED.sub(_blank, self.text)

    @functools.cached_property
    def code_and_strings(self) -> str:
        """The same, with the contents of strings."""
        return _SKIPPED.sub(lambda match: match[0] if match[0][0] == '"' else _blank(match), self.text)

    @functools.cached_property
    def pragmas(self) -> tuple[Pragma, ...]:
        return tuple(self._find_pragmas())

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *(match.end() for match in re.finditer("\n", self.text))]

    def line(self, position: int) -> int:
        """The line of a position, counted from 1."""
        return bisect.bisect_right(self._line_starts, position)

    def error(self, position: int, message: str) -> MoecError:
        return MoecError(f"{self.name}:{self.line(position)}: {message}")

    def _find_pragmas(self) -> Iterator[Pragma]:
        for match in _SKIPPED.finditer(self.text):
            pragma = _PRAGMA.fullmatch(match[0])
            if pragma is None:
                continue
            options, unreadable = {}, []
            text = re.sub(r"//.*|/\*.*?\*/|\\\n", " ", pragma[2])
            for option in _OPTION.finditer(text):
                if option[1] is None:
                    unreadable.append(option[0])
                else:
                    options[option[1]] = option[2] or ""
            yield Pragma(pragma[1].upper(), options, tuple(unreadable), match.start(), match.end())


def _blank(match: re.Match[str]) -> str:
    quote = match[0][0] if match[0][0] in "\"'" else " "
    return quote + re.sub(r"[^\n]", " ", match[0][1:-1]) + (quote if len(match[0]) > 1 else "")


def closing(code: str, opening: int) -> int:
    """The position of the bracket that closes the one at ``opening``; -1 if there is none."""
    depth = 0
    for position in range(opening, len(code)):
        if code[position] in "([{":
            depth += 1
        elif code[position] in ")]}":
            depth -= 1
            if depth == 0:
                return position
    return -1


def split_list(text: str) -> list[str]:
    """The parts of a list of arguments or parameters. Commas inside brackets of any kind do not separate parts."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]
