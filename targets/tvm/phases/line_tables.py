"""Lines of generated code: the numbers of the statements that LLVM's text and assembly come from."""

from __future__ import annotations

import itertools
import re

_DEFINITION = re.compile(r"^define (?P<head>[^\n]*) \{\n(?P<body>.*?)^\}\n", re.MULTILINE | re.DOTALL)
_SUBPROGRAM = re.compile(r"^!\d+ = (distinct !DISubprogram\([^\n]*)\)$", re.MULTILINE)
_VARIABLES = re.compile(r", retainedNodes: !\d+")
_LOCATION = re.compile(r"^!(?P<id>\d+) = (?:distinct )?!DILocation\(line: (?P<line>\d+)[^\n]*$", re.MULTILINE)
_USE = re.compile(r"!dbg !(?P<id>\d+)")
_DEBUG_RECORD = re.compile(r"^ *#dbg_[^\n]*\n", re.MULTILINE)
_METADATA = re.compile(r"^!(\d+) = ", re.MULTILINE)
_PLACE = re.compile(r"^\t\.(?:loc\t|file\t\d)[^\n]*\n", re.MULTILINE)
_DEBUG_SECTION = re.compile(
    r'^\t\.section\t"?\.debug_.*?(?=^\t(?:\.section\t"?\.(?!debug_)|\.text$|\.ident\t)|\Z)', re.MULTILINE | re.DOTALL
)


def with_subprograms(llvm: str) -> str:
    """A module in LLVM's language in which all functions that have lines are described as subprograms.

    TVM describes kernels so, but not the bodies of their parallel loops, for which LLVM then writes no lines.
    """
    subprogram = _SUBPROGRAM.search(llvm)
    if subprogram is None:
        return llvm
    pattern = _VARIABLES.sub("", subprogram[1])
    lines = {match["id"]: match["line"] for match in _LOCATION.finditer(llvm)}
    fresh = itertools.count(max(map(int, _METADATA.findall(llvm))) + 1)
    added: list[str] = []

    def described(definition: re.Match[str]) -> str:
        head, body = definition["head"], definition["body"]
        if " !dbg " in head or " !dbg " not in body:
            return definition[0]
        own = next(fresh)
        added.append(f"!{own} = {pattern})\n")
        instead: dict[str, int] = {}
        for use in dict.fromkeys(_USE.findall(body)):
            instead[use] = next(fresh)
            added.append(f"!{instead[use]} = !DILocation(line: {lines[use]}, scope: !{own})\n")
        body = _USE.sub(lambda use: f"!dbg !{instead[use['id']]}", _DEBUG_RECORD.sub("", body))
        return f"define {head} !dbg !{own} {{\n{body}}}\n"

    return _DEFINITION.sub(described, llvm) + "".join(added)


def without_lines(assembly: str) -> str:
    """Assembly without line numbers and other sections for debuggers."""
    return _PLACE.sub("", _DEBUG_SECTION.sub("", assembly))
