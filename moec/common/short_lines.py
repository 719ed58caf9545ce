"""Code in lines of at most 120 characters: long lines are cut where the fewest brackets are open."""

from __future__ import annotations

import re
import textwrap

WIDTH = 120
"""Most characters of a printed line."""
_INDENT = 4
_TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|(?P<comma>, )|(?P<operator> (?=(?:[-+*/%^|&?:<>]|//|<<|>>|[<>=!]=|&&|\|\||and|or|if|else) |"))'
    r"|.",
    re.DOTALL,
)
"""A string, a place for a break (after a comma, before an operator), or a character."""
_TIGHTNESS = {"+": 0.1, "-": 0.1, **dict.fromkeys(("*", "/", "//", "%", "<<", ">>", "&", "|", "^"), 0.2)}
"""How much worse than others it is to break a line before an operator, as a share of a level of brackets."""
_OPERANDS = re.compile(r"(?<=[}\]]), (?=[{\[])|(?<=;) | (?=\{%)")
"""Places in assembly where its text may be cut: between instructions, and around groups of operands."""
_STRING = re.compile(r'"[^"\n]{40,}"')
_JOINT = '" "'
"""The end of a string and the beginning of the next one, which the compiler joins."""
_VALUE = re.compile(r"\s*(?P<keyword>(?:if|while|elif|assert|return) )|.*?(?: [-+*]?= )")
"""The beginning of a statement up to its condition or value."""


def wrapped(line: str, *, parenthesized: bool = False) -> list[str]:
    """The line of code as lines of at most :data:`WIDTH` characters, the others indented more.

    ``parenthesized``: put what stands after the assignment or keyword between parentheses where a break would stand
    outside of all brackets, as Python needs it. A line stays long where it cannot be cut.
    """
    if len(line) <= WIDTH:
        return [line]
    lines = _cut(line)
    begin = _VALUE.match(line) if parenthesized and _is_cut_outside(lines) else None
    if begin is None:
        return lines
    head, value = line[: begin.end()], line[begin.end() :]
    end = ":" if begin["keyword"] and value.endswith(":") else ""
    return _cut(f"{head}({value.removesuffix(end)}){end}")


def with_short_lines(source: str) -> str:
    """A source in C with long lines cut after commas and before operators, and long strings of assembly between
    operands. Directives stay as they are; a long comment behind a statement goes before it."""
    parts, continues = list[str](), False
    for line in source.splitlines():
        parts += _short(line, continues=continues)
        continues = line.rstrip().endswith((",", "("))
    return "".join(f"{part}\n" for part in parts)


def _short(line: str, *, continues: bool) -> list[str]:
    """The parts of a line. ``continues``: whether it is inside of brackets, and indented for that."""
    if len(line) <= WIDTH or line.lstrip().startswith("#"):
        return [line]
    code, mark, comment = line.partition("// ")
    if mark and '"' not in code:
        indent = code[: len(code) - len(code.lstrip())]
        before = textwrap.wrap(comment, WIDTH - len(indent) - len(mark))
        return [f"{indent}{mark}{part}" for part in before] + (
            _short(code.rstrip(), continues=continues) if code.strip() else []
        )
    parts = _cut(line, deeper=not continues)
    if max(map(len, parts)) > WIDTH:
        cut = _STRING.sub(lambda string: _OPERANDS.sub(rf"\g<0>{_JOINT}", string[0]), line)
        parts = [part.replace(_JOINT, "") for part in _cut(cut, deeper=not continues)]
    return parts


def _is_cut_outside(lines: list[str]) -> bool:
    """Whether a break stands outside of all brackets."""
    depth = 0
    for line in lines[:-1]:
        depth += sum(_depth_of(match[0]) for match in _TOKEN.finditer(line))
        if depth == 0:
            return True
    return False


def _cut(line: str, *, deeper: bool = True) -> list[str]:
    levels = deeper and (2 if line.endswith((":", "{")) else 1)
    indent = " " * (len(line) - len(line.lstrip()) + _INDENT * levels)
    lines = list[str]()
    while len(line) > WIDTH:
        at = _best_break(line)
        if at is None:
            break
        lines.append(line[:at].rstrip())
        line = indent + line[at:].lstrip()
    return [*lines, line]


def _best_break(line: str) -> int | None:
    """The last of the places that are inside the fewest brackets and operations; None if there is none.

    A line is at least a third full, if that is possible."""
    start = len(line) - len(line.lstrip())
    places: list[tuple[float, int]] = []
    depth = 0
    for match in _TOKEN.finditer(line):
        if match.end() > WIDTH:
            break
        depth += (opened := _depth_of(match[0]))
        if match["comma"]:
            places.append((depth, match.end()))
        elif match["operator"] and match.start() > start:
            places.append((depth + _TIGHTNESS.get(line[match.end() :].partition(" ")[0], 0), match.start()))
        elif opened > 0:
            places.append((depth + 0.5, match.end()))
    full = [place for place in places if place[1] >= start + (WIDTH - start) // 3]
    return min(full or places, key=lambda place: (place[0], -place[1]))[1] if places else None


def _depth_of(token: str) -> int:
    """The number of brackets that a token opens: 1, 0 or -1."""
    return (token in "[({") - (token in "])}")
