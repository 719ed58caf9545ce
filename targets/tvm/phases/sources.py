"""Readable text of a kernel, cut from its LLVM or assembly module, and the statements that its lines come from."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from moec.targets.tvm.text.statement_lines import FUNCTION

SYMBOL_PREFIX = "__tvm_ffi_"
"""Prefix of a kernel's name in the object file."""

_LLVM_FUNCTION = re.compile(r'^define [^\n]*?@"?(?P<name>[\w.$]+)"?\(.*?^}\n', re.MULTILINE | re.DOTALL)
_ASSEMBLY_FUNCTION = re.compile(
    r"^\t\.type\t(?P<name>[\w.$]+),@function\n.*?^\t\.size\t(?P=name),[^\n]*\n", re.MULTILINE | re.DOTALL
)
_SYMBOL = re.compile(r"[\w.$]+")
_NOISE = re.compile(r"\t\.(?:loc|file|cfi_|p2align)|\.L(?:tmp|func_begin|func_end)\d+:$| *#dbg_\w+\(")
"""Beginnings of lines that are left out: annotations for debuggers, and of where instructions are placed."""
_REMARK = re.compile(r",? !(?:dbg|prof|tbaa|llvm\.loop) !\d+|[ ]+; preds = .*")
"""References to metadata that the text does not show, and the lists of predecessors that LLVM prints after a label."""
_LOCATION = re.compile(r"^!(?P<id>\d+) = (?:distinct )?!DILocation\(line: (?P<number>\d+)", re.MULTILINE)
_USE = re.compile(r"!dbg !(?P<id>\d+)$")
_LOC = re.compile(r"\t\.loc\t\d+ (?P<number>\d+)")
_LABEL = re.compile(r"\S+:(?: +;.*)?$")
_FRAME = re.compile(r"define |\}|\t\.(?:type|size)\t")
"""Beginnings of lines around a function's instructions."""

Numbered = tuple[str, int]
"""A line and the number of its statement, 0 where LLVM names none."""


@dataclasses.dataclass(frozen=True)
class LinedText:
    """A text, and for each of its lines the number of the statement that it comes from; 0 for an empty line."""

    text: str
    statements: list[int]


def llvm_of(module: str, kernel: str) -> LinedText:
    """LLVM IR of a kernel, parallel bodies that it calls included, debug annotations left out."""
    numbers = {match["id"]: int(match["number"]) for match in _LOCATION.finditer(module)}

    def lines(function: str) -> Iterator[Numbered]:
        for line in function.splitlines():
            use = _USE.search(line)
            yield line, numbers.get(use["id"], 0) if use else 0

    return _cut(_LLVM_FUNCTION, module, kernel, lines)


def assembly_of(module: str, kernel: str) -> LinedText:
    """Assembly of a kernel, parallel bodies that it calls included, debug directives left out."""

    def lines(function: str) -> Iterator[Numbered]:
        number = 0
        for line in function.splitlines():
            location = _LOC.match(line)
            number = int(location["number"]) if location else number
            yield line, number

    return _cut(_ASSEMBLY_FUNCTION, module, kernel, lines)


def _cut(
    pattern: re.Pattern[str], module: str, kernel: str, numbered: Callable[[str], Iterator[Numbered]]
) -> LinedText:
    functions = {match["name"]: match[0] for match in pattern.finditer(module)}
    lines: list[Numbered] = []
    for name in _reachable(functions, SYMBOL_PREFIX + kernel):
        lines += [("", 0), *_attributed(numbered(functions[name]))]
    return LinedText("".join(f"{line}\n" for line, _ in lines[1:]), [number for _, number in lines[1:]])


def _attributed(lines: Iterator[Numbered]) -> list[Numbered]:
    """The lines that people read, each with a number.

    Instructions that LLVM added, such as spills, and those that it merged from several places have the number of the
    instruction before, as in a debugger; labels that of the instruction after them.
    """
    kept, last = list[Numbered](), FUNCTION
    for line, number in lines:
        if _NOISE.match(line):
            continue
        framing = _FRAME.match(line) is not None
        last = last if framing else number or last
        kept.append((_REMARK.sub("", line), FUNCTION if framing else last))
    for place in reversed(range(len(kept) - 1)):
        line, number = kept[place]
        if not line:
            kept[place] = line, 0
        elif _LABEL.match(line):
            kept[place] = line, kept[place + 1][1] or number
    return kept


def _reachable(functions: dict[str, str], entry: str) -> list[str]:
    """The entry and the private functions it calls; not other kernels."""
    reachable, pending = [entry], [entry]
    while pending:
        for name in dict.fromkeys(_SYMBOL.findall(functions[pending.pop()])):
            if name in functions and name not in reachable and not name.startswith(SYMBOL_PREFIX):
                reachable.append(name)
                pending.append(name)
    return reachable
