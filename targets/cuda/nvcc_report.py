"""Reports of nvcc and ptxas about a source: the resources of each function, warnings and remarks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

EXPECTED = {
    "177": "a function or variable is not used: helpers come with TVM's preamble, kernels name what some forms need",
    "550": "a variable is set and not used, likewise",
    "1046": "a number is no float: constants are written in double precision and rounded to nearest",
}
"""Numbers of nvcc's warnings that do not matter in generated code, each with the reason."""
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
    """The report by function. Text that concerns no function is under an empty name."""

    resources: dict[str, str]
    """Two lines: registers, barriers and memory; stack and spills."""
    advisories: dict[str, list[str]]
    """Warnings, and remarks such as that products on tensor cores are serialised, in the compiler's words."""


def read_report(text: str, source: str) -> PtxasReport:
    """Parse ``text``, the output of ``nvcc -Xptxas -v`` for ``source``."""
    used, stack = dict[str, str](), dict[str, str]()
    advisories = dict[str, list[str]]()
    function = ""
    for line in text.splitlines():
        if match := _FUNCTION.search(line):
            function = match[1]
        elif match := _USED.match(line):
            used[function] = match[1]
        elif match := _STACK.match(line):
            stack[function] = match[1]
        elif not _ROUTINE.match(line):
            for name, advice in _advice(line, source):
                advisories.setdefault(name, []).append(advice)
    return PtxasReport({name: f"{used[name]}\n{stack[name]}\n" for name in used if name in stack}, advisories)


def registers_of(resources: str) -> int:
    """Registers of a thread, from a function's resources in a report. Raises ValueError if the text has none."""
    match = _REGISTERS.match(resources)
    if match is None:
        raise ValueError(f"no number of registers: {resources[:80]!r}")
    return int(match[1])


def _advice(line: str, source: str) -> Iterator[tuple[str, str]]:
    """The function that a line is about and its advice, as one pair; nothing for a line that only continues another."""
    if match := _NVCC.match(line):
        before = "".join(source.splitlines(keepends=True)[: int(match[1])])
        yield next(iter(reversed(_KERNEL.findall(before))), ""), match[2]
    elif line.startswith("ptxas"):
        defined = set(_KERNEL.findall(source))
        named = [name for name in _QUOTED.findall(line) if name in defined]
        match = _PTXAS.match(line)
        yield next(iter(named), ""), match[1] if match else line
