"""Read-only loads in PTX: which arrays a kernel loads by ``ld.global.nc`` and also writes.

No barrier orders such a load after a write of the same launch, so the arrays of the two must differ.
"""

from __future__ import annotations

import re

_POINTER = re.compile(r"\.param\s+\.u64\s+(\w+)")
_INSTRUCTION = re.compile(r"(?:^|(?<=[{;]))\s*(?:@!?%\w+\s+)?([a-z][\w.:]*)\s+([^;]*);", re.MULTILINE)
_NAME = re.compile(r"%[a-z]+\d+|\w+_param_\d+")
_READ_ONLY_LOAD = re.compile(r"ld\.global\.nc\b")
_WRITE = re.compile(r"(?:st|red|atom)\.(?!shared|local|param)")


def written_arrays_loaded_as_read_only(ptx: str) -> set[str]:
    """The parameters of the kernel in ``ptx`` through which it both loads by ``ld.global.nc`` and writes.

    An address comes from a parameter if a chain of instructions computes it from that one, in whatever order they run.
    """
    instructions = [(match[1], match[2]) for match in _INSTRUCTION.finditer(ptx)]
    origins = _origins(instructions, set(_POINTER.findall(ptx)))

    def reached_by(opcodes: re.Pattern[str]) -> set[str]:
        names = {
            name
            for opcode, operands in instructions
            if opcodes.match(opcode)
            for name in _NAME.findall(operands.partition("[")[2].partition("]")[0])
        }
        return {origin for name in names for origin in origins.get(name, ())}

    return reached_by(_READ_ONLY_LOAD) & reached_by(_WRITE)


def _origins(instructions: list[tuple[str, str]], pointers: set[str]) -> dict[str, set[str]]:
    """For each register, the pointers among the parameters that its value is computed from."""
    origins: dict[str, set[str]] = {pointer: {pointer} for pointer in pointers}
    changed = True
    while changed:
        changed = False
        for opcode, operands in instructions:
            if opcode.startswith("ld.") and not opcode.startswith("ld.param"):
                continue  # the value in memory, which does not come from the address
            result, *sources = _NAME.findall(operands) or [""]
            known = origins.setdefault(result, set())
            results = {origin for source in sources for origin in origins.get(source, ())}
            changed |= not results <= known
            known |= results
    return origins
