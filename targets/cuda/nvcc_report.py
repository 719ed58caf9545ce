"""What nvcc and ptxas say of a source: the resources of each function, and what they advise against."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

EXPECTED = {
    "177": "a function or variable is not used: helpers come with TVM's preamble, kernels name what some forms need",
    "550": "a variable is set and not used, likewise",
    "1046": "a number is no float: constants are written in double precision and rounded to nearest",
}
"""Numbers of nvcc's warnings that mean nothing in generated code, and why."""
_KERNEL = re.compile(r"__global__ void (?:__\w+__\s*\([^()]*\)\s*)*(\w+)\s*\(")
_FUNCTION = re.compile(r"(?:Compiling entry function|Function properties for) '?(\w+)'?")
_USED = re.compile(r"^ptxas info\s*: (Used .*)")
_REGISTERS = re.compile(r"^Used (\d+) registers")
_STACK = re.compile(r"^\s*(\d+ bytes stack frame.*)")
_ROUTINE = re.compile(r"^ptxas info\s*: (?:\d+ bytes gmem|Compile time =|Compiling entry function|Function properties)")
_PTXAS = re.compile(r"^ptxas (?:[^;:]*[;:] )?\s*(?:info|warning|error)?\s*:? ?(.*)")
_NVCC = re.compile(r"^[^\n(]*\((\d+)\): (?:warning|remark) (#\d+(?:-D)?: .*)")
_QUOTED = re.compile(r"'(\w+)'")


@dataclasses.dataclass(frozen=True)
class PtxasReport:
    """By function; the name is empty for what is said of no function."""

    resources: dict[str, str]
    """Two lines: registers, barriers and memory; stack and spills."""
    advisories: dict[str, list[str]]
    """Warnings, and remarks such as that products on tensor cores are serialised, in the compiler's words."""


def read_report(text: str, source: str) -> PtxasReport:
    """``text``: what ``nvcc -Xptxas -v`` said when it compiled ``source``."""
    used, stack = dict[str, str](), dict[str, str]()
    advisories = dict[str, list[str]]()
    function = ""
    for line in text.splitlines():
        if found := _FUNCTION.search(line):
            function = found[1]
        elif found := _USED.match(line):
            used[function] = found[1]
        elif found := _STACK.match(line):
            stack[function] = found[1]
        elif not _ROUTINE.match(line):
            for name, advice in _advice(line, source):
                advisories.setdefault(name, []).append(advice)
    return PtxasReport({name: f"{used[name]}\n{stack[name]}\n" for name in used if name in stack}, advisories)


def registers_of(resources: str) -> int:
    """Registers of a thread, from what a report says of a function's resources. Raises ValueError."""
    found = _REGISTERS.match(resources)
    if found is None:
        raise ValueError(f"no number of registers: {resources[:80]!r}")
    return int(found[1])


def _advice(line: str, source: str) -> Iterator[tuple[str, str]]:
    """The function that a line is about, and what it says; nothing for a line that only goes on."""
    if found := _NVCC.match(line):
        before = "".join(source.splitlines(keepends=True)[: int(found[1])])
        yield next(iter(reversed(_KERNEL.findall(before))), ""), found[2]
    elif line.startswith("ptxas"):
        defined = set(_KERNEL.findall(source))
        named = [name for name in _QUOTED.findall(line) if name in defined]
        found = _PTXAS.match(line)
        yield next(iter(named), ""), found[1] if found else line
