"""Lines of CUDA C that lines of PTX and of machine code come from, as nvcc's line tables say.

Code of an inlined function comes from the line of the kernel that calls it, directly or through other functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_OWN_FILE = "1"
"""The number of the source in PTX."""
_LOC = re.compile(
    r"\t\.loc\t(?P<place>\d+ \d+ \d+)(?:, function_name [^,]*, inlined_at (?P<caller>\d+ \d+ \d+))?(?: .*)?$"
)
_NOISE = re.compile(r"\t\.loc\t|\$L__tmp\d+:$|\t\.file\t")
"""Lines of PTX that say where code comes from."""
_SECTION = re.compile(r"\t\.section\t")
"""A line of PTX after which there is no code."""
_ENTRY = re.compile(
    r"^\.visible \.entry (?P<name>\w+)\(.*?(?=^\.(?:visible|weak|func|extern)\b|\Z)", re.MULTILINE | re.DOTALL
)
"""A kernel in PTX, up to the next declaration. Its closing brace does not mark the end, since braces of inline assembly
stand at the beginning of a line, too."""
_POOL = re.compile(r"^\.extern \.shared [^\n]*? (?P<name>\w+)\[\];\n", re.MULTILINE)
_SASS_FILE = re.compile(r'\t//## File "(?P<file>[^"]*)", line (?P<line>\d+)')
_SASS_SECTION = re.compile(r"\.text\.(?P<name>\w+):$")
_SASS_ADDRESS = re.compile(r" *(?:/\*[0-9a-f]{4,}\*/ +)*?/\*(?P<address>[0-9a-f]{4,})\*/ +\S")

Lined = tuple[str, list[int]]
"""A text, and for each of its lines the line of the source, from 1, that it comes from; 0 for none."""


def kernels_of_ptx(ptx: str) -> dict[str, Lined]:
    """Each kernel by name, after the declarations of the shared-memory pools that it uses, without debug information
    about lines."""
    text, numbers = _without_locations(ptx)
    pools = {match["name"]: match[0] for match in _POOL.finditer(text)}
    kernels: dict[str, Lined] = {}
    for match in _ENTRY.finditer(text):
        used = [pool for name, pool in pools.items() if name in match[0]]
        first = text.count("\n", 0, match.start())
        own = numbers[first : first + match[0].count("\n")]
        kernels[match["name"]] = "".join(used) + match[0], [0] * len(used) + own
    return kernels


def _without_locations(ptx: str) -> Lined:
    lines, numbers, number = list[str](), list[int](), 0
    callers: dict[str, str | None] = {}
    for line in ptx.splitlines(keepends=True):
        if _SECTION.match(line):
            break
        location = _LOC.match(line)
        if location:
            callers[location["place"]] = location["caller"]
            number = _outermost(location["place"], callers)
        if _NOISE.match(line):
            continue
        number = 0 if line.startswith(".") else number
        lines.append(line)
        numbers.append(number)
    return "".join(lines), numbers


def _outermost(place: str, callers: Mapping[str, str | None]) -> int:
    """The line of the kernel that a place stands in or is called from; 0 if that is not in the source."""
    seen: set[str] = set()
    while (caller := callers.get(place)) is not None and place not in seen:
        seen.add(place)
        place = caller
    file, line, _ = place.split()
    return int(line) if file == _OWN_FILE else 0


def lines_of_sass(text: str, disassembled: str, source: str) -> list[int]:
    """The lines of the source that the lines of a function's machine code come from. ``text``: of cuobjdump;
    ``disassembled``: the function's section as nvdisasm shows it with lines; ``source``: the source's file name."""
    line_of: dict[int, int] = {}
    number = 0
    for line in disassembled.splitlines():
        place = _SASS_FILE.match(line)
        if place:
            number = int(place["line"]) if place["file"].rpartition("/")[2] == source else number
        elif address := _SASS_ADDRESS.match(line):
            line_of[int(address["address"], 16)] = number
    numbers, last = list[int](), 0
    for line in text.splitlines():
        address = _SASS_ADDRESS.match(line)
        last = line_of.get(int(address["address"], 16), last) if address else last
        numbers.append(last if line.strip() else 0)
    return numbers


def sections_of(disassembled: str) -> dict[str, str]:
    """The sections of kernels in nvdisasm's text, by the kernels' names."""
    sections: dict[str, list[str]] = {}
    current: list[str] = []
    for line in disassembled.splitlines():
        match = _SASS_SECTION.match(line)
        if match:
            current = sections.setdefault(match["name"], [])
        current.append(line)
    return {name: "\n".join(lines) for name, lines in sections.items()}
