"""Rules about memories: accesses to external ones must form bursts, and arrays must name their storage."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.simulators.hls.cpp import Pragma, Statement

from .linted import Finding, FunctionPlace, Linted

_CONDITIONS = ("if", "switch")
_ARRAY = re.compile(r"([\w>]+)\s+(\w+)\s*((?:\[[^\]]*\]\s*)+)(?=;|=\s*[{A-Z])")
_NO_TYPES = {"return", "else"}


def unconditional_accesses(linted: Linted) -> Iterator[Finding]:
    """An access to memory in a loop depends on no condition: otherwise it is no burst (UG1448, 214-232), and each beat
    takes the memory's latency."""
    for place in linted.places:
        memories = [
            parameter.name for parameter in place.function.parameters if parameter.is_pointer and not parameter.is_array
        ]
        for loop, _ in place.loops():
            for statement in loop.walk():
                if statement.kind in _CONDITIONS:
                    yield from _accesses(place, statement, memories)


def _accesses(place: FunctionPlace, statement: Statement, memories: list[str]) -> Iterator[Finding]:
    for memory in memories:
        for match in re.finditer(rf"(?<![\w.>:]){memory}\s*\[", place.code[statement.start : statement.end]):
            message = (
                f"memory {memory} is accessed under a condition, so it is no burst; "
                "pass its beats through a channel, and choose behind it"
            )
            yield place.finding(statement.start + match.start(), "unconditional-accesses", message)


def bound_storage(linted: Linted) -> Iterator[Finding]:
    """An array that is not partitioned into registers names its storage: the tool's choice may take memories that were
    planned for others."""
    for place in linted.used:
        for match in _ARRAY.finditer(place.text):
            name, dimensions = match[2], match[3].count("[")
            is_channel = "hls::stream<" in place.text[: match.start(2)].rpartition("\n")[2]
            if is_channel or match[1] in _NO_TYPES or _is_registers(place, name, dimensions):
                continue
            if not any(pragma.options.get("variable") == name for pragma in _pragmas(place, "BIND_STORAGE")):
                message = f"array {name} has no pragma BIND_STORAGE and is not partitioned completely; add one of both"
                yield place.finding(place.function.body.start + match.start(2), "bound-storage", message)


def _is_registers(place: FunctionPlace, name: str, dimensions: int) -> bool:
    complete = {
        pragma.options.get("dim", "1")
        for pragma in _pragmas(place, "ARRAY_PARTITION")
        if pragma.options.get("variable") == name and pragma.options.get("type", "complete") == "complete"
    }
    return "0" in complete or complete >= {str(dimension + 1) for dimension in range(dimensions)}


def _pragmas(place: FunctionPlace, directive: str) -> list[Pragma]:
    return [pragma for pragma, _ in place.pragmas() if pragma.directive == directive]
