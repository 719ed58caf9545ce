"""Rules about accesses to external memory: what has to hold so that they become bursts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.targets.hls.cpp_structure import Statement
from moec.targets.hls.linted import Finding, Linted, Place

_CONDITIONS = ("if", "switch")


def unconditional_accesses(linted: Linted) -> Iterator[Finding]:
    """In a loop, an access to memory depends on no condition: it would be no burst (UG1448, 214-232), and each beat
    would take the memory's latency."""
    for place in linted.places:
        memories = [one.name for one in place.function.parameters if one.is_pointer and not one.is_array]
        for loop, _ in place.loops():
            for statement in loop.walk():
                if statement.kind in _CONDITIONS:
                    yield from _accesses(place, statement, memories)


def _accesses(place: Place, statement: Statement, memories: list[str]) -> Iterator[Finding]:
    for memory in memories:
        for match in re.finditer(rf"(?<![\w.>:]){memory}\s*\[", place.source.code[statement.start : statement.end]):
            message = (
                f"memory {memory} is accessed under a condition, so it is no burst; "
                "pass its beats through a channel, and choose behind it"
            )
            yield place.finding(statement.start + match.start(), "unconditional-accesses", message)
