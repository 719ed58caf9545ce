"""Instrumentation of delivered HLS sources for the timed simulation; the delivered files hold no simulation code.

- ``#pragma HLS PIPELINE II=n style=s`` becomes the start of an iteration, n cycles after the one before. It names the
  streams that the loop writes, since these are written in different stages of the pipeline.
- Calls in a function with ``#pragma HLS DATAFLOW`` become processes, and its m_axi ports memories.
- A function with ports that calls such functions runs them one after the other; any other call in it is a process of
  its own.
- An access through a pointer becomes a beat of a memory. It must be in a loop whose label starts with ``axi_``; the
  first beat of such a loop takes the memory's latency.
- ``#pragma HLS DEPENDENCE ... dependent=false`` becomes a claim that is checked.

Lines keep their numbers. Code that is not understood is an error that names the file and the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, get_args

from moec.simulators.hls.cpp import Function, Pragma, Source, Statement, nodes_in

if TYPE_CHECKING:
    from tree_sitter import Node

Style = Literal["stp", "frp", "flp"]
"""The style of a pipeline: stalling, free running or flushing (UG1399). Without one, the tool chooses."""
STYLES = get_args(Style)
_MEMORY_LABEL = "axi_"
_WITHOUT_TIME = {
    *("AGGREGATE", "ALLOCATION", "ARRAY_PARTITION", "ARRAY_RESHAPE", "BIND_OP", "BIND_STORAGE", "DISAGGREGATE"),
    *("INLINE", "INTERFACE", "LOOP_FLATTEN", "LOOP_TRIPCOUNT", "STABLE", "UNROLL"),
}
"""Pragmas on the structure of hardware, which do not change the cycles that the simulation counts."""
_IN_LOOPS = {"PIPELINE", "DEPENDENCE"}
_IN_REGIONS = {"DATAFLOW", "STREAM"}
_NAME = re.compile(r"[A-Za-z_]\w*")
_WRITES = {"write", "write_nb"}
_FUNCTION_NAMES = {"identifier", "qualified_identifier", "template_function"}
_DECLARATION = re.compile(r"(?:hls::stream\s*<|typedef\b|using\b|static_assert\b|(?:static\s+)?const(?:expr)?\b)")


def instrument(source: Source) -> str:
    """The text to simulate. Raises MoecError for code whose cycles the simulation cannot count."""
    edits = _Edits(source)
    regions = {function.name for function in source.functions if function.body.pragmas_named("DATAFLOW")}
    for function in source.functions:
        if function.name in regions:
            _instrument_region(edits, function)
        elif regions and function.body.pragmas_named("INTERFACE"):
            _instrument_top(edits, function, regions)
        else:
            _instrument_loops(edits, function)
            _instrument_memory(edits, function)
    for pragma in source.pragmas:
        if pragma.directive not in _WITHOUT_TIME and pragma not in edits.understood:
            raise source.error(pragma.start, _not_understood(pragma))
    return edits.applied()


def has_region(source: Source) -> bool:
    return any(pragma.directive == "DATAFLOW" for pragma in source.pragmas)


class _Edits:
    """Insertions and replacements in a source that keep the numbers of lines."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.understood: list[Pragma] = []
        self._edits: list[tuple[int, int, str]] = []

    def insert(self, position: int, text: str) -> None:
        self._edits.append((position, position, text))

    def replace(self, pragma: Pragma, text: str) -> None:
        lines = self.source.text.count("\n", pragma.start, pragma.end)
        self._edits.append((pragma.start, pragma.end, text + "\n" * lines))
        self.understood.append(pragma)

    def applied(self) -> str:
        text = self.source.text
        for start, end, replacement in sorted(self._edits, key=lambda edit: edit[0], reverse=True):
            text = text[:start] + replacement + text[end:]
        return f'#line 1 "{self.source.name}"\n{text}'


def _not_understood(pragma: Pragma) -> str:
    if pragma.directive in _IN_LOOPS:
        place = "expected it in a loop, in front of the loop's statements"
    elif pragma.directive in _IN_REGIONS:
        place = "expected it in the body of the function that is the DATAFLOW region"
    else:
        names = ", ".join(sorted(_WITHOUT_TIME | _IN_LOOPS | _IN_REGIONS))
        place = f"the simulation knows {names}"
    return f"pragma {pragma.words}: {place}"


def _instrument_loops(edits: _Edits, function: Function) -> None:
    guarded: set[int] = set()
    for loop, around in function.body.loops():
        if not loop.has("PIPELINE"):
            _expect_known_cycles(edits.source, loop, around)
            continue
        _instrument_pipeline(edits, function, loop)
        for claim in loop.body.pragmas_named("DEPENDENCE"):
            edits.replace(claim, _claim(edits.source, claim))
        memory = [outer for outer in (*around, loop) if outer.label.startswith(_MEMORY_LABEL)]
        guard = memory[0] if memory else _nest(loop, around)
        if guard.start not in guarded:
            guarded.add(guard.start)
            edits.insert(guard.start, _guard("uses_memory" if memory else "computes"))


def _guard(kind: str) -> str:
    return f"for (::moec_simulation::Loop moec_loop(::moec_simulation::Loop::{kind}); moec_loop.enters();) "


def _pipelines(loop: Statement) -> list[Pragma]:
    return [pragma for pragma in loop.body.pragmas if pragma.directive == "PIPELINE" and "off" not in pragma.options]


def _is_unrolled(loop: Statement) -> bool:
    return any(pragma.directive == "UNROLL" and "factor" not in pragma.options for pragma in loop.body.pragmas)


def _expect_known_cycles(source: Source, loop: Statement, around: tuple[Statement, ...]) -> None:
    """Check that a loop that is not pipelined takes no cycles of its own: it is unrolled, or holds loops that take
    cycles. Raises MoecError if not."""
    if _is_unrolled(loop) or any(outer.has("PIPELINE") for outer in around):
        return
    if not any(inner is not loop and inner.is_loop and not _is_unrolled(inner) for inner in loop.walk()):
        raise source.error(
            loop.start,
            "a loop that is neither pipelined nor unrolled: add #pragma HLS PIPELINE II=1 or #pragma HLS UNROLL",
        )


def _instrument_pipeline(edits: _Edits, function: Function, loop: Statement) -> None:
    pragma, *more = _pipelines(loop)
    if problem := _pipeline_problem(loop, pragma, more):
        raise edits.source.error(pragma.start, problem)
    style = f"::moec_simulation::Style::{pragma.options.get('style') or STYLES[0]}"
    written = _written_streams(edits.source, function, loop)
    arguments = [style, pragma.options.get("II") or "1", *written]
    edits.replace(pragma, f"::moec_simulation::tick({', '.join(arguments)});")


def _written_streams(source: Source, function: Function, loop: Statement) -> list[str]:
    """The streams that a loop writes, in the order of their first writes."""
    streams = {parameter.name for parameter in function.parameters if "hls::stream" in parameter.type}
    written = (source.text_of(node) for node in map(_written, nodes_in(loop.node)) if node is not None)
    return list(dict.fromkeys(name for name in written if name in streams))


def _written(node: Node) -> Node | None:
    """The stream in ``stream.write(word)`` or ``stream << word``; None for other code."""
    if node.type == "binary_expression" and node.children[1].type == "<<":
        return node.children[0]
    function = node.child_by_field_name("function") if node.type == "call_expression" else None
    field = None if function is None else function.child_by_field_name("field")
    if function is None or field is None or field.text is None or field.text.decode() not in _WRITES:
        return None
    return function.child_by_field_name("argument")


def _pipeline_problem(loop: Statement, pragma: Pragma, more: list[Pragma]) -> str:
    if more:
        return "two pragmas PIPELINE for the same loop: keep one"
    if loop.body.children and loop.body.children[0].start < pragma.start:
        return "pragma PIPELINE behind a statement: put it where the loop's body starts"
    if pragma.options.get("style", STYLES[0]) not in STYLES:
        return f"style={pragma.options['style']}: expected one of {', '.join(STYLES)}"
    if loop.has("UNROLL"):
        return "a loop that is pipelined and partly unrolled: the simulation counts whole iterations"
    if any(inner.is_loop and inner.has("PIPELINE") for inner in loop.body.walk()):
        return "a pipelined loop inside this one, whose pragma has it unrolled: remove one pragma"
    return ""


def _claim(source: Source, pragma: Pragma) -> str:
    options = pragma.options
    if "inter" not in (options.get("type"), *options) or options.get("direction", "RAW") != "RAW":
        problem = "the simulation checks type=inter, and direction=RAW where one is given"
    elif "variable" not in options:
        problem = "expected variable="
    elif options.get("dependent") != "false" and "false" not in options and "distance" not in options:
        problem = "expected dependent=false or distance="
    else:
        variable, distance = options["variable"], options.get("distance", "0")
        return f'::moec_simulation::independent("{variable}", {variable}, {distance});'
    raise source.error(pragma.start, f"pragma {pragma.words}: {problem}")


def _nest(loop: Statement, around: tuple[Statement, ...]) -> Statement:
    """The outermost of the loops that are flattened into one, with only loops between them."""
    for outer in reversed(around):
        if outer.body.kind == "block" and len(outer.body.children) != 1:
            break
        loop = outer
    return loop


def _instrument_memory(edits: _Edits, function: Function) -> None:
    """Turn accesses through the function's pointers into beats of memories."""
    source = edits.source
    within = [loop for loop, _ in function.body.loops() if loop.label.startswith(_MEMORY_LABEL)]
    memories = {parameter.name for parameter in function.parameters if parameter.is_pointer and not parameter.is_array}
    for node in nodes_in(function.body.node):
        name, user = source.text_of(node), node.parent
        if node.type != "identifier" or name not in memories or user is None or user.type == "argument_list":
            continue
        if user.type != "subscript_expression" or user.children[0] != node:
            raise source.error(node.start_byte, f"pointer {name} is used otherwise than {name}[index]")
        if not any(loop.start < node.start_byte < loop.end for loop in within):
            raise source.error(
                node.start_byte,
                f"memory {name} is accessed outside of a loop whose label starts with {_MEMORY_LABEL}: "
                "move the access into one",
            )
        edits.insert(node.start_byte, "::moec_simulation::memory(")
        edits.insert(node.end_byte, ")")


def _instrument_top(edits: _Edits, function: Function, regions: set[str]) -> None:
    """Make each call other than of a region a process of its own. Regions may be called in any order and in loops."""
    source, body = edits.source, function.body
    memories = "".join(_memories(source, body.pragmas, "moec_call"))
    edits.insert(body.start + 1, f" ::moec_simulation::Call moec_call; {memories}")
    for statement in body.walk():
        call = _call(source, statement)
        if call and call[0] not in regions:
            name, arguments = call
            added = f'moec_region.add("{name}", "{arguments}", [&] {{ '
            edits.insert(statement.start, f'{{ ::moec_simulation::Region moec_region("{name}"); {added}')
            edits.insert(statement.end, " }); moec_region.run(); }")


def _call(source: Source, statement: Statement) -> tuple[str, str] | None:
    """The name of the function that a statement calls, without its scope, and the names in its arguments; None for
    other statements."""
    call = statement.node.named_children[0] if statement.node.type == "expression_statement" else None
    function = None if call is None else call.child_by_field_name("function")
    arguments = None if call is None else call.child_by_field_name("arguments")
    if function is None or arguments is None or function.type not in _FUNCTION_NAMES:
        return None
    name = source.text_of(function).partition("<")[0].split("::")[-1].strip()
    return name, " ".join(_NAME.findall(source.text_of(arguments)))


def _instrument_region(edits: _Edits, function: Function) -> None:
    source, body = edits.source, function.body
    region, names = body.pragmas_named("DATAFLOW")[0], dict[str, int]()
    memories = "".join(_memories(source, body.pragmas, "moec_region"))
    edits.replace(region, f'::moec_simulation::Region moec_region("{function.name}"); {memories}')
    for statement in body.children:
        call = _call(source, statement)
        if call is None and not _DECLARATION.match(source.text, statement.start):
            raise source.error(
                statement.start, "expected only calls of processes and declarations of channels in a DATAFLOW region"
            )
        if statement.start < region.start:
            raise source.error(statement.start, "a statement in front of pragma DATAFLOW: put it behind the pragma")
        if call is None:
            continue
        name, arguments = call
        names[name] = names.get(name, 0) + 1
        shown = name if names[name] == 1 else f"{name} {names[name]}"
        edits.insert(statement.start, f'moec_region.add("{shown}", "{arguments}", [&] {{ ')
        edits.insert(statement.end, " });")
    for pragma in body.pragmas_named("STREAM"):
        edits.replace(pragma, _set_depth(source, pragma))
    edits.insert(body.end - 1, " moec_region.run(); ")


def _memories(source: Source, pragmas: tuple[Pragma, ...], owner: str) -> Iterator[str]:
    for pragma in pragmas:
        if pragma.directive != "INTERFACE" or "m_axi" not in (pragma.options.get("mode"), *pragma.options):
            continue
        port, bundle, depth = (pragma.options.get(name) for name in ("port", "bundle", "depth"))
        if not (port and bundle and depth):
            raise source.error(pragma.start, f"pragma {pragma.words}: expected port=, bundle= and depth=")
        yield f'{owner}.memory("{bundle}", "{port}", {port}, {depth}); '


def _set_depth(source: Source, pragma: Pragma) -> str:
    variable, depth = pragma.options.get("variable"), pragma.options.get("depth")
    if not (variable and depth) or pragma.options.get("type", "fifo") != "fifo":
        raise source.error(pragma.start, f"pragma {pragma.words}: expected variable=, depth= and no type but fifo")
    return f'::moec_simulation::declare({variable}, "{variable}", {depth});'
