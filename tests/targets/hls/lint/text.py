"""The text of C++ without what is no code, and its lists."""

from __future__ import annotations

import functools
import re

_SKIPPED = re.compile(
    r'//(?:[^\n\\]|\\.)*|/\*.*?\*/|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|^[ \t]*#(?:[^\n\\]|\\.)*',
    re.DOTALL | re.MULTILINE,
)


@functools.lru_cache(maxsize=128)
def code(text: str, *, strings: bool = False) -> str:
    """The text with comments, preprocessor lines and the contents of strings blanked, so that positions stay.
    ``strings``: keep the contents of strings."""
    return _SKIPPED.sub(lambda match: match[0] if strings and match[0][0] == '"' else _blank(match), text)


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
