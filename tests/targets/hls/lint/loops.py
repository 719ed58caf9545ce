"""Rules about loops, which decide how many cycles a process takes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from moec.simulators.hls.cpp import Statement

from .constants import DeclaredConstants
from .linted import Finding, FunctionPlace, Linted

_DIVISION = re.compile(r"(?<![/*])[/%]=?(?![/*=])\s*(\([^()]*\)|[\w:<>]*\w)")
_VARIABLE = re.compile(r"(?<![\w:>.])[a-z]\w*(?!\w|\s*(?:::|<|\())")
"""A name whose value is known only at run time; constants are written in capitals, or qualified."""
_WORDS = {"int", "true", "false", "sizeof", "unsigned", "long", "bool", "const"}


def pipelined_innermost_loops(linted: Linted) -> Iterator[Finding]:
    """An innermost loop is pipelined or unrolled, and a loop inside a pipelined one is unrolled: otherwise every
    iteration takes its whole latency, or the tools decide."""
    for place in linted.places:
        for loop, around in place.loops():
            if loop.has("PIPELINE") and any(outer.has("PIPELINE", "UNROLL") for outer in around):
                yield _finding(place, loop, "pipelined-loops", "is pipelined inside a loop that is unrolled for it")
            elif not loop.has("PIPELINE", "UNROLL"):
                if any(outer.has("PIPELINE", "UNROLL") for outer in around):
                    yield _finding(place, loop, "pipelined-loops", "lies in a pipelined loop; add #pragma HLS UNROLL")
                elif not _has_inner_loops(loop) and not _runs_regions(linted, place, loop):
                    yield _finding(
                        place, loop, "pipelined-loops", "is innermost; add #pragma HLS PIPELINE II=1 or UNROLL"
                    )


def trip_counts(linted: Linted) -> Iterator[Finding]:
    """A loop declares its trip count if that is known only at run time, since reports otherwise show no latency. Such a
    loop is not unrolled."""
    for place in linted.places:
        for loop, around in place.loops():
            variables = _run_time_variables(loop, around)
            if loop.has("UNROLL"):
                if variables:
                    message = f"is unrolled, but its end depends on {', '.join(variables)}; give it a constant end"
                    yield _finding(place, loop, "trip-counts", message)
            elif (variables or loop.kind != "for") and not loop.has("LOOP_TRIPCOUNT"):
                yield _finding(place, loop, "trip-counts", "ends at run time; add #pragma HLS LOOP_TRIPCOUNT min= max=")


def cheap_divisions(linted: Linted) -> Iterator[Finding]:
    """A pipelined loop divides only by powers of two, which are wires: a divider takes thousands of LUTs. An intended
    divider is in a function of its own."""
    everywhere = DeclaredConstants(linted.sources)
    for place in linted.used:
        constants = everywhere.within(place.text)
        for loop, _ in place.loops():
            if not loop.has("PIPELINE"):
                continue
            for match in _DIVISION.finditer(place.code, loop.start, loop.end):
                values = constants.values(match[1])
                if values and all(value > 0 and value & (value - 1) == 0 for value in values):
                    continue
                divisor = f"{match[1]}, which is {', '.join(map(str, sorted(values)))}" if values else match[1]
                message = f"division by {divisor}: no power of two; count along instead, or divide outside of the loop"
                yield place.finding(match.start(), "cheap-divisions", message)


def _finding(place: FunctionPlace, loop: Statement, rule: str, message: str) -> Finding:
    return place.finding(loop.start, rule, f"loop {loop.label or loop.header.strip()} {message}")


def _has_inner_loops(loop: Statement) -> bool:
    return any(inner is not loop and inner.is_loop and not inner.has("UNROLL") for inner in loop.walk())


def _runs_regions(linted: Linted, place: FunctionPlace, loop: Statement) -> bool:
    """Whether a loop runs regions one after the other."""
    text = place.code[loop.start : loop.end]
    return any(re.search(rf"\b{region.function.name}\s*\(", text) for region in linted.regions)


def _counter(loop: Statement) -> str:
    match = re.match(r"\s*[\w:<>\s]*?(\w+)\s*=", loop.header)
    return match[1] if match else ""


def _run_time_variables(loop: Statement, around: tuple[Statement, ...]) -> list[str]:
    """The variables that the trip count of a loop depends on, without constants and counters of unrolled loops."""
    if loop.kind == "for":
        start, condition, _ = [*loop.header.split(";"), "", ""][:3]
        text = start.partition("=")[2] + " " + condition
    else:
        text = loop.header
    counters = {_counter(loop), *(_counter(outer) for outer in around if outer.has("UNROLL"))}
    return sorted(set(_VARIABLE.findall(text)) - counters - _WORDS)
