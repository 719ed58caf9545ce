"""Nodes of a model's text: where they stand, and which of the imported model's nodes they were made of."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from moec.common.names import in_comment

_NAME = r'"(?:\\.|[^"\\])*"|\w+'
_NODE = re.compile(
    rf"(?:\[(?P<name>{_NAME})\] )?(?:(?P<outputs>(?:(?:{_NAME})(?:, )?)+) = )?(?P<op>[\w.:]+) (?P<attributes>.*?)"
    rf"\((?P<inputs>(?:(?:{_NAME})(?:, )?)*)\)",
    re.DOTALL,
)
_NAMES = re.compile(_NAME)
_ESCAPED = re.compile(r"\\(.)")
_RESULTS = re.compile(r"\) => \((?P<outputs>.*)\)$")
_INDENT = "   "


@dataclasses.dataclass(frozen=True)
class NodeLines:
    """A node of a model's text. ``first`` and ``last``: its lines, from 0. Values are texts; a missing one is empty.
    ``inside``: all names in its attributes, among them the values that its graphs use."""

    name: str
    op: str
    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    inside: frozenset[str]
    first: int
    last: int


@functools.lru_cache(64)
def nodes_of(text: str) -> dict[str, NodeLines]:
    """The nodes of a model's graph by name, as kernels list them. Nodes that no result needs are left out."""
    lines = text.splitlines()
    nodes = [node for node in (_node(*place) for place in _statements(lines)) if node is not None]
    results = next((match["outputs"] for match in map(_RESULTS.search, lines) if match), "")
    needed = {_plain(name) for name in _NAMES.findall(results)}  # words of the results' types among them
    live = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            live.append(node)
            needed.update(node.inputs, node.inside)
    return {node.name: node for node in reversed(live)}


def _statements(lines: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """The statements of the outermost graph with their first and last lines. Lines of graphs in attributes are deeper,
    or begin with a bracket."""
    begin = next((place for place, line in enumerate(lines) if line == "{"), len(lines))
    first = 0
    for place in range(begin + 1, len(lines)):
        line = lines[place]
        is_first = line == "}" or (line.startswith(_INDENT) and line[len(_INDENT) :][:1] not in ("", " ", *"{}<>"))
        if is_first and first:
            yield "\n".join(lines[first:place]).strip(), first, place - 1
        first = place if is_first else first


def _node(statement: str, first: int, last: int) -> NodeLines | None:
    match = _NODE.fullmatch(statement)
    if match is None:
        return None
    outputs = tuple(map(_plain, _NAMES.findall(match["outputs"] or "")))
    name = _plain(match["name"]) if match["name"] else next(filter(None, outputs), match["op"])
    inputs = tuple(map(_plain, _NAMES.findall(match["inputs"])))
    inside = frozenset(map(_plain, _NAMES.findall(match["attributes"]))) if first < last else frozenset()
    return NodeLines(in_comment(name), match["op"], outputs, inputs, inside, first, last)


def _plain(name: str) -> str:
    return _ESCAPED.sub(r"\1", name[1:-1]) if name.startswith('"') else name


@functools.lru_cache(4)
def imported_nodes(stages: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """For each node of the last stage, the names of the nodes of the first that it was made of.

    A node that keeps its name and operator from one stage to the next is the same. Nodes that a stage added were made
    of what computed their results from their inputs before, as far as it is gone.
    """
    origins = {name: frozenset([name]) for name in nodes_of(stages[0])}
    for before, after in itertools.pairwise(stages):
        origins = _traced(nodes_of(before), nodes_of(after), origins)
    return origins


def _traced(
    old: Mapping[str, NodeLines], new: Mapping[str, NodeLines], origins: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    kept = {name for name, node in new.items() if name in old and old[name].op == node.op}
    makers = {value: node for node in old.values() for value in node.outputs if value}
    earlier = {value: value for node in old.values() for value in (*node.inputs, *node.outputs) if value}
    for name in kept:
        for values, before in ((new[name].outputs, old[name].outputs), (new[name].inputs, old[name].inputs)):
            earlier.update(zip(values, before, strict=False))
    traced = {name: origins[name] for name in kept}
    for group in _groups([node for node in new.values() if node.name not in kept], earlier):
        ends = {earlier[value] for node in group for value in (*node.inputs, *node.inside) if value in earlier}
        results = [earlier[value] for node in group for value in node.outputs if value in earlier]
        gone = set(_between(results, ends, makers, kept))
        made_of = frozenset(origin for name in gone for origin in origins[name])
        traced.update({node.name: made_of for node in group})
    return traced


def _between(results: Iterable[str], ends: set[str], makers: Mapping[str, NodeLines], kept: set[str]) -> Iterator[str]:
    """The names of the nodes that compute ``results`` from ``ends``, without those that were kept."""
    pending, seen = list(results), set(ends)
    while pending:
        value = pending.pop()
        maker = makers.get(value)
        if value in seen or maker is None or maker.name in kept:
            continue
        seen.add(value)
        yield maker.name
        pending += [*maker.inputs, *maker.inside]


def _groups(nodes: Sequence[NodeLines], earlier: Mapping[str, str]) -> Iterator[list[NodeLines]]:
    """The added nodes, those together that pass one another values which were not there before."""
    users: dict[str, list[int]] = {}
    for place, node in enumerate(nodes):
        for value in {*node.inputs, *node.outputs} - earlier.keys() - {""}:
            users.setdefault(value, []).append(place)
    left = dict.fromkeys(range(len(nodes)))
    while left:
        group, pending = [], [next(iter(left))]
        while pending:
            place = pending.pop()
            if place not in left:
                continue
            del left[place]
            group.append(nodes[place])
            for value in (*nodes[place].inputs, *nodes[place].outputs):
                pending += users.get(value, ())
        yield group
