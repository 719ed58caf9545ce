"""Section ``passes``: the model before and after every pass that changed it, and the rules of the pass."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from moec.exploring.edits import edits
from moec.exploring.subject import Subject
from moec.ir.printer import print_parts, print_type
from moec.ir.text import parse_model
from moec.passes import PASSES

_IMPORT = "The model as the frontend read it."


def passes(subject: Subject) -> dict[str, Any]:
    """Describe the passes that changed the model.

    ``lines``: texts of constants and nodes, each once. ``nodes``: for each line its node, as name, operator, names of
    outputs and of inputs, or None for a constant. ``types``: type of each value, as the last pass that had it knew it.
    ``stages``: per pass its ``name``, its place ``at`` in the pipeline, its ``rules``, its ``remarks``, the number of
    ``nodes`` after it, of values that were ``retyped``, and ``edits``: places in the lines before it, numbers of lines
    removed there, and lines added.
    ``unchanged``: names of the passes that changed nothing.
    """
    table = _Table()
    stages, before, unchanged = [], [], []
    for at, stage in enumerate(subject.description["stages"]):
        if not stage["changed"]:
            unchanged.append(stage["name"])
            continue
        lines, count, retyped = table.read(subject.artifact.text(stage["file"]))
        remarks = [each["message"] for each in subject.description["remarks"] if each["pass_name"] == stage["name"]]
        stages.append(
            {
                "name": stage["name"],
                "at": at,
                "rules": _rules(stage["name"]),
                "remarks": remarks,
                "nodes": count,
                "retyped": retyped,
                "edits": edits(before, lines),
            }
        )
        before = lines
    return {"lines": table.lines, "nodes": table.nodes, "types": table.types, "stages": stages, "unchanged": unchanged}


class _Table:
    """Lines of all stages, each once, with their nodes."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.nodes: list[list[Any] | None] = []
        self.types: dict[str, str] = {}
        self._places: dict[str, int] = {}

    def read(self, text: str) -> tuple[list[int], int, int]:
        """Add the lines of one stage. Returns their places, the number of nodes, and that of values whose type is
        another than before."""
        graph = parse_model(text).graph
        constants, nodes = print_parts(graph)
        types = {str(value.name): print_type(value) for value in _values(graph)}
        retyped = sum(self.types.get(name, kind) != kind for name, kind in types.items())
        self.types.update(types)
        places = [self._place(line.rstrip(","), None) for line in constants]
        places += [self._place(line, node) for line, node in zip(nodes, graph, strict=True)]
        return places, len(nodes), retyped

    def _place(self, line: str, node: ir.Node | None) -> int:
        if line not in self._places:
            self._places[line] = len(self.lines)
            self.lines.append(line)
            self.nodes.append(None if node is None else _described(node))
        return self._places[line]


def _described(node: ir.Node) -> list[Any]:
    operator = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    inputs = [value.name for value in (*node.inputs, *_captured(node)) if value is not None and value.name]
    return [node.name, operator, [value.name for value in node.outputs if value.name], list(dict.fromkeys(inputs))]


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Go through the values that the bodies of a node read from outside of it, and those of their own."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            for inner in attribute.as_graph().all_nodes():
                yield from (value for value in inner.inputs if value is not None)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _rules(name: str) -> str:
    """The docstring of a pass: numbered rules, with the model before and after."""
    return inspect.getdoc(PASSES[name]()) or "" if name in PASSES else _IMPORT
