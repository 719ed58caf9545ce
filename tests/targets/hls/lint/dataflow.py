"""Rules about DATAFLOW regions, without which processes cannot run in parallel."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from moec.simulators.hls.cpp import Statement

from .linted import Finding, FunctionPlace, Linted
from .text import closing, code, split_list

_CALL = re.compile(r"\s*(?:[\w]+::)*(\w+)\s*(?:<[^;()]*>)?\s*\((.*)\)\s*;", re.DOTALL)
_STREAMS = re.compile(r"\s*hls::stream\s*<(?P<type>.*)>\s*(?P<names>\w+\s*[(\[;,].*)", re.DOTALL)
_ARRAY = re.compile(r"\s*(?:static\s+)?[\w:<>,\s]+?\b(\w+)\s*\[[^\]]*\]")
_OTHER = re.compile(r"\s*(?:typedef|using|static_assert|(?:static\s+)?const(?:expr)?)\b")
_READS = re.compile(r"\s*(?:\[\w+\]\s*)?(?:\.\s*(?:read|read_nb|empty)\s*\(|>>)")
_WRITES = re.compile(r"\s*(?:\[\w+\]\s*)?(?:\.\s*(?:write|write_nb|full)\s*\(|<<)")


@dataclasses.dataclass(frozen=True)
class _Process:
    name: str
    arguments: tuple[str, ...]
    start: int


def simple_regions(linted: Linted) -> Iterator[Finding]:
    """A region holds only declarations of channels and calls of processes that are defined (the canonical form of
    UG1399): other statements become processes of their own, or make the tools give up."""
    for place in linted.regions:
        for statement in place.function.body.children:
            text = _text(place, statement)
            if _STREAMS.fullmatch(text) or _ARRAY.match(text) or _OTHER.match(text):
                continue
            call = _CALL.fullmatch(text)
            if call is None:
                message = "a statement that is neither a declaration nor a call; move it into a process"
                yield place.finding(statement.start, "simple-regions", message)
            elif call[1] not in linted.by_name:
                message = f"process {call[1]} is not defined in these sources; correct the name, or include its header"
                yield place.finding(statement.start, "simple-regions", message)


def named_channels(linted: Linted) -> Iterator[Finding]:
    """Every channel has a depth, and a name equal to its variable's, for reports and simulations. An array of channels
    has its depth in a pragma, and names by default."""
    for place in linted.regions:
        for statement, names, has_depth in _channels(place):
            if not has_depth:
                message = f"channels {', '.join(names)} have no depth; declare hls::stream<type, depth>"
                yield place.finding(statement.start, "named-channels", message)
            for name, cpp_name in names.items():
                if cpp_name != name:
                    message = f'channel {name} is called "{cpp_name}"; declare {name}("{name}")'
                    yield place.finding(statement.start, "named-channels", message)


def single_producer_and_consumer(linted: Linted) -> Iterator[Finding]:
    """Every channel is written by one process and read by another one that is called later: a channel is a FIFO, and C
    simulation runs processes in the order of calls."""
    for place in linted.regions:
        processes = _processes(place)
        for statement, names, _ in _channels(place):
            for name in names:
                writers = [process for process in processes if _uses(linted, process, name, _WRITES)]
                readers = [process for process in processes if _uses(linted, process, name, _READS)]
                if len(writers) != 1 or len(readers) != 1 or writers == readers:
                    message = (
                        f"channel {name} is written by {_listed(writers)} and read by {_listed(readers)}; "
                        "expected one process each"
                    )
                    yield place.finding(statement.start, "single-producer-and-consumer", message)
                elif readers[0].start < writers[0].start:
                    message = (
                        f"channel {name} is read by {readers[0].name} before {writers[0].name} writes; swap the calls"
                    )
                    yield place.finding(readers[0].start, "single-producer-and-consumer", message)


def one_process_per_array(linted: Linted) -> Iterator[Finding]:
    """An array or a port belongs to one process: a shared one makes the tools serialise processes."""
    for place in linted.regions:
        arrays = [
            parameter.name for parameter in place.function.parameters if parameter.is_array or parameter.is_pointer
        ]
        texts = [_text(place, statement) for statement in place.function.body.children]
        arrays += [match[1] for text in texts if not _OTHER.match(text) and (match := _ARRAY.match(text))]
        for array in arrays:
            users = [process for process in _processes(place) if array in process.arguments]
            if len(users) > 1:
                message = (
                    f"{array} is used by {_listed(users)}; give it to one process, and pass values through a channel"
                )
                yield place.finding(users[1].start, "one-process-per-array", message)


def one_master_per_direction(linted: Linted) -> Iterator[Finding]:
    """Two processes do not read through the same AXI master, and do not write through the same one: they would wait for
    each other's bursts."""
    for place in linted.regions:
        bundles = _bundles(linted, place)
        constant = {parameter.name: parameter.type.startswith("const") for parameter in place.function.parameters}
        users: dict[tuple[str, bool], dict[str, _Process]] = {}
        for process in _processes(place):
            for port in set(process.arguments) & set(bundles):
                users.setdefault((bundles[port], constant.get(port, False)), {})[process.name] = process
        for (bundle, reads), sharing in users.items():
            if len(sharing) > 1:
                message = (
                    f"{_listed(list(sharing.values()))} {'read' if reads else 'write'} through bundle {bundle}; "
                    "give each a bundle of its own"
                )
                yield place.finding(list(sharing.values())[1].start, "one-master-per-direction", message)


def regions_in_turn(linted: Linted) -> Iterator[Finding]:
    """A function that runs regions one after the other leaves its ports to them, under the same names. Its own accesses
    would be no bursts, and reports know a port by one name. Regions are not inlined, or they would run in parallel."""
    for place in linted.tops:
        if place in linted.regions:
            continue
        ports = [parameter.name for parameter in place.function.parameters if parameter.is_pointer]
        for port in ports:
            for match in re.finditer(rf"(?<![\w.]){port}\s*\[|\*\s*{port}\b", place.text):
                message = (
                    f"port {port} is accessed between regions; move the access into a loop of a function of its own"
                )
                yield place.finding(place.function.body.start + match.start(), "regions-in-turn", message)
        for region, call in _calls_of_regions(linted, place):
            if not any("off" in pragma.options for pragma in region.function.body.pragmas_named("INLINE")):
                message = f"region {call.name} may be inlined; add #pragma HLS INLINE off"
                yield region.finding(region.function.start, "regions-in-turn", message)
            for parameter, argument in zip(region.function.parameters, call.arguments, strict=False):
                if parameter.is_pointer and (argument != parameter.name or argument not in ports):
                    message = f"{call.name} takes {argument} as {parameter.name}; call it with a port of the same name"
                    yield place.finding(call.start, "regions-in-turn", message)


def _calls_of_regions(linted: Linted, place: FunctionPlace) -> Iterator[tuple[FunctionPlace, _Process]]:
    names = {region.function.name: region for region in linted.regions}
    for statement in place.function.body.walk():
        call = _CALL.fullmatch(_text(place, statement)) if statement.kind == "plain" else None
        if call and call[1] in names:
            yield names[call[1]], _Process(call[1], tuple(split_list(call[2])), statement.start)


def _bundles(linted: Linted, region: FunctionPlace) -> dict[str, str]:
    """The AXI bundles of a region's ports by name: its own, or those of the function that calls it."""
    tops = [
        top
        for top in linted.tops
        if top is region or any(called is region for called, _ in _calls_of_regions(linted, top))
    ]
    return {
        pragma.options.get("port", ""): pragma.options.get("bundle", "")
        for top in tops
        for pragma in top.function.body.pragmas_named("INTERFACE")
        if "m_axi" in (pragma.options.get("mode"), *pragma.options)
    }


def _text(place: FunctionPlace, statement: Statement) -> str:
    return code(place.source.text, strings=True)[statement.start : statement.end]


def _channels(place: FunctionPlace) -> Iterator[tuple[Statement, dict[str, str], bool]]:
    """Declarations of channels: each with its channels' names, mapped to the names given in C++, and whether they have
    a depth. An array counts as its elements."""
    deep = {
        pragma.options.get("variable")
        for pragma in place.function.body.pragmas_named("STREAM")
        if "depth" in pragma.options
    }
    for statement in place.function.body.children:
        if match := _STREAMS.fullmatch(_text(place, statement)):
            names: dict[str, str] = {}
            arrays: list[str] = []
            for declared in split_list(match["names"].rstrip().rstrip(";")):
                if item := re.fullmatch(r"(\w+)\s*\[\s*(\d+)\s*\]", declared):
                    names |= {name: name for name in (f"{item[1]}[{number}]" for number in range(int(item[2])))}
                    arrays.append(item[1])
                elif item := re.fullmatch(r'(\w+)\s*(?:\(\s*"([^"]*)".*\))?', declared, re.DOTALL):
                    names[item[1]] = item[2] or ""
            has_depth = len(split_list(match["type"])) == 2 or (bool(arrays) and deep.issuperset(arrays))
            yield statement, names, has_depth


def _processes(place: FunctionPlace) -> list[_Process]:
    processes = []
    for statement in place.function.body.children:
        text = _text(place, statement)
        if not (_STREAMS.fullmatch(text) or _OTHER.match(text)) and (call := _CALL.fullmatch(text)):
            processes.append(_Process(call[1], tuple(split_list(call[2])), statement.start))
    return processes


def _uses(linted: Linted, process: _Process, channel: str, how: re.Pattern[str]) -> bool:
    return any(
        _uses_parameter(linted, process.name, index, how, frozenset())
        for index, argument in enumerate(process.arguments)
        if argument in (channel, channel.partition("[")[0])
    )


def _uses_parameter(linted: Linted, name: str, index: int, how: re.Pattern[str], seen: frozenset[str]) -> bool:
    """Whether a function uses a parameter in a way (``how``: a read or a write), or passes it on to one that does."""
    place = linted.by_name.get(name)
    if place is None or index >= len(place.function.parameters) or name in seen:
        return False
    parameter = place.function.parameters[index].name
    for match in re.finditer(rf"(?<![\w.]){parameter}\b", place.text):
        if how.match(place.text, match.end()):
            return True
        passed_on = _argument_at(place.text, match.start())
        if passed_on and _uses_parameter(linted, *passed_on, how, seen | {name}):
            return True
    return False


def _argument_at(text: str, position: int) -> tuple[str, int] | None:
    """The called function that the text at a position is an argument of, and the index of the argument; None if it is
    none."""
    for call in re.finditer(r"(\w+)\s*(?:<[^;(){}]*>)?\s*\(", text[:position]):
        end = closing(text, call.end() - 1)
        before = text[call.end() : position]
        if end > position and before.count("(") == before.count(")"):
            return call[1], len(split_list(before + "_")) - 1
    return None


def _listed(processes: list[_Process]) -> str:
    return ", ".join(process.name for process in processes) or "nobody"
