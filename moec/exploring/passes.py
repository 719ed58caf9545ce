"""Section ``passes``: the model before and after every pass that changed it, and the rules of the pass."""

from __future__ import annotations

import inspect
from typing import Any

from moec.exploring.edits import edits
from moec.exploring.model_nodes import ModelNode, ModelNodes
from moec.exploring.subject import Subject
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
        model = subject.models[stage["file"]]
        lines, retyped = table.add(model)
        remarks = [each["message"] for each in subject.description["remarks"] if each["pass_name"] == stage["name"]]
        stages.append(
            {
                "name": stage["name"],
                "at": at,
                "rules": _rules(stage["name"]),
                "remarks": remarks,
                "nodes": len(model.nodes),
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

    def add(self, model: ModelNodes) -> tuple[list[int], int]:
        """Add the lines of one model. Returns their places, and the number of values whose type is another than
        before."""
        retyped = sum(self.types.get(name, kind) != kind for name, kind in model.types.items())
        self.types.update(model.types)
        places = [self._place(line, None) for line in model.constants]
        return [*places, *(self._place(node.text, node) for node in model.nodes)], retyped

    def _place(self, line: str, node: ModelNode | None) -> int:
        if line not in self._places:
            self._places[line] = len(self.lines)
            self.lines.append(line)
            self.nodes.append(None if node is None else _described(node))
        return self._places[line]


def _described(node: ModelNode) -> list[Any]:
    return [node.name, node.operator, [name for name in node.outputs if name], list(node.read)]


def _rules(name: str) -> str:
    """The docstring of a pass: numbered rules, with the model before and after."""
    return inspect.getdoc(PASSES[name]()) or "" if name in PASSES else _IMPORT
