"""One kernel at all levels: nodes, operators, and every form of its code, with the lines that belong together."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moec import targets
from moec.common.errors import ArtifactError, MoecError
from moec.common.kernel_structure import KernelStructure, LoopLevel
from moec.common.records import read_json
from moec.exploring.model_nodes import ModelNode
from moec.exploring.subject import Subject
from moec.runtime.artifact import Artifact
from moec.runtime.entries import KernelEntry

_TIR = "tir"
_NO_GRAPH = "the artifact holds no graphs"
_ONE_DESIGN = "the processes of a design compute all of its nodes; their lines belong to no single one"
_NO_LINKS = "the artifact does not say which lines of this level belong to others"

Link = int | None


def kernel_levels(subject: Subject, name: str) -> dict[str, Any]:
    """Describe a kernel as plain data.

    ``levels``: from the imported model's nodes down to machine code, each with ``level``, ``text``, ``lines`` and
    ``absent``. ``lines`` has an id for each line, None for one that belongs to no other; equal ids belong together.
    ``parents``: by id, as text, the ids of the coarser lines that its lines come from. ``absent``: why a level has no
    text, or no ids; None where it has both. ``loops``: trees of loops, ``buffers`` and ``resources``
    (:meth:`moec.targets.kind.Kind.resources`).

    Kernels are those of the subject's architecture, by default the newest. The design of a project is described under
    the project's name. Raises MoecError where there is no such kernel.
    """
    artifact = subject.artifact
    kind = targets.kind_of(artifact.manifest.target)
    project = next((project for project in artifact.manifest.projects if project.name == name), None)
    design = None if project is None else kind.design_text(project)
    if design is not None:
        graph = _GraphLevels(subject, design.nodes)
        text = artifact.text(design.file)
        code = _level(design.form, text, [None] * len(text.splitlines()), _ONE_DESIGN)
        return _described(name, [*graph.levels, code], graph.parents)
    program = artifact.program(subject.architecture)
    kernel = next((kernel for kernel in program.kernels if kernel["name"] == name), None)
    if kernel is None:
        names = ", ".join(kernel["name"] for kernel in program.kernels)
        raise MoecError(f"{artifact.where}: has no kernel {name!r}; its kernels: {names or 'none'}")
    structure = _structure(artifact, kernel)
    levels = _KernelLevels(subject, kernel, structure)
    return _described(name, levels.described(), levels.parents) | {
        "loops": [] if structure is None else _trees(structure.loops),
        "buffers": [] if structure is None else [_buffer(vars(buffer)) for buffer in structure.buffers],
        "resources": kind.resources(artifact, kernel, program.architecture),
    }


def _described(name: str, levels: list[dict[str, Any]], parents: Mapping[int, list[int]]) -> dict[str, Any]:
    """A record without loops, buffers and resources."""
    links = {str(link): coarser for link, coarser in parents.items()}
    return {"name": name, "levels": levels, "parents": links, "loops": [], "buffers": [], "resources": []}


def _structure(artifact: Artifact, kernel: KernelEntry) -> KernelStructure | None:
    file = kernel["structure"]
    if file is None:
        return None
    return read_json(
        KernelStructure, artifact.text(file), f"{artifact.where}: {file}", "compile it again", ArtifactError
    )


class _GraphLevels:
    """The levels of the imported model's nodes, and of the operators, by name, that a kernel or design computes. For
    one in the body of a loop that is the loop."""

    def __init__(self, subject: Subject, names: Iterable[str]) -> None:
        self.ids = itertools.count(1)
        self.operator_ids: dict[str, int] = {}
        self.parents: dict[int, list[int]] = {}
        models = [*subject.models.values()]
        if not models:
            self.levels = [_level(level, "", [], _NO_GRAPH) for level in ("onnx", "operators")]
            return
        last, made_of = models[-1].needed, subject.imported_nodes
        around = {inner: node for node in last.values() for inner in node.inner}
        computed = (last.get(name) or around.get(name) for name in names)
        operators = list(dict.fromkeys(operator for operator in computed if operator is not None))
        origins = {origin for operator in operators for origin in made_of[operator.name]}
        nodes = [node for name, node in models[0].needed.items() if name in origins]
        node_ids = {node.name: next(self.ids) for node in nodes}
        self.operator_ids = {operator.name: next(self.ids) for operator in operators}
        for name, link in self.operator_ids.items():
            self.parents[link] = [node_ids[node.name] for node in nodes if node.name in made_of[name]]
        self.levels = [
            _nodes_level("onnx", nodes, node_ids, "the nodes were added while the model was compiled"),
            _nodes_level("operators", operators, self.operator_ids, "the kernel computes no node alone"),
        ]


class _KernelLevels:
    """The levels of one kernel. Ids are given in the order of the levels."""

    def __init__(self, subject: Subject, kernel: KernelEntry, structure: KernelStructure | None) -> None:
        self._artifact, self._kernel, self._structure = subject.artifact, kernel, structure
        self._graph = _GraphLevels(subject, kernel["nodes"])
        self._ids_of: dict[str, dict[int, int]] = {}
        """Ids of lines, from 1, of the forms that other forms come from."""
        self.parents = self._graph.parents

    def described(self) -> list[dict[str, Any]]:
        """The levels as plain data, from coarse to fine."""
        sources = self._kernel["sources"]
        forms = [targets.forms()[_TIR], *targets.kind_of(self._artifact.manifest.target).forms]
        levels = list(self._graph.levels)
        for form in forms:
            if form.is_code and form.name in sources:
                levels.append(self._code(form.name, self._artifact.text(sources[form.name])))
            elif form.is_code:
                tools = f"{form.made_by} was not installed when it was compiled" if form.made_by else "it was not kept"
                levels.append(_level(form.name, "", [], tools))
        return levels

    def _code(self, form: str, text: str) -> dict[str, Any]:
        all_links = {} if self._structure is None else self._structure.links
        links = all_links.get(form)
        if links is None:
            return _level(form, text, [None] * len(text.splitlines()), _NO_LINKS)
        numbers = links.numbers
        if links.form == form:  # the coarsest form, whose lines come from operators
            places, parents = numbers, {number: [*self._graph.operator_ids.values()] for number in {*numbers} - {0}}
        else:
            origins = self._ids_of[links.form]
            if all(other.form != form for other in all_links.values()):
                return _level(form, text, [origins.get(number) for number in numbers], None)
            places = [number and line for line, number in enumerate(numbers, 1)]
            parents = {line: [origins[numbers[line - 1]]] for line in places if line}
        ids = self._ids_of[form] = {place: next(self._graph.ids) for place in sorted(parents)}
        self.parents |= {ids[place]: coarser for place, coarser in parents.items()}
        return _level(form, text, [ids.get(place) for place in places], None)


def _nodes_level(level: str, nodes: Sequence[ModelNode], ids: Mapping[str, int], without: str) -> dict[str, Any]:
    """A level with the lines of some nodes."""
    shown = [(line, ids[node.name]) for node in nodes for line in node.text.splitlines()]
    text = "".join(f"{line}\n" for line, _ in shown)
    return _level(level, text, [link for _, link in shown], None if nodes else without)


def _level(level: str, text: str, lines: list[Link], absent: str | None) -> dict[str, Any]:
    return {"level": level, "text": text, "lines": lines, "absent": absent}


def _trees(loops: Sequence[LoopLevel]) -> list[dict[str, Any]]:
    """The loops as trees. Counts that are known are numbers, others texts."""
    trees = [
        {key: _count(value) for key, value in dataclasses.asdict(loop).items() if key != "inside"} | {"children": []}
        for loop in loops
    ]
    for loop, tree in zip(loops, trees, strict=True):
        if loop.inside >= 0:
            trees[loop.inside]["children"].append(tree)
    return [tree for loop, tree in zip(loops, trees, strict=True) if loop.inside < 0]


def _buffer(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {**fields, "shape": [_count(size) for size in fields["shape"]], "bytes": _count(fields["bytes"])}


def _count(value: Any) -> Any:
    """A number where the text is one; None for an empty one."""
    if not isinstance(value, str):
        return value
    return int(value) if value.isdecimal() else value or None
