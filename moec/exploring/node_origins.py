"""Origins of nodes: which of the imported model's nodes each node after the last pass was made of."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

from moec.exploring.model_nodes import ModelNode, ModelNodes


def imported_nodes(models: Sequence[ModelNodes]) -> dict[str, frozenset[str]]:
    """Name the nodes of the first model that each node of the last one was made of. Nodes that no result needs are
    left out.

    A node that keeps its name and operator from one model to the next is the same. Nodes that a pass added were made
    of what computed their results from their inputs before, as far as it is gone.
    """
    origins = {name: frozenset([name]) for name in models[0].needed}
    for before, after in itertools.pairwise(models):
        origins = _traced(before.needed, after.needed, origins)
    return origins


def _traced(
    old: Mapping[str, ModelNode], new: Mapping[str, ModelNode], origins: Mapping[str, frozenset[str]]
) -> dict[str, frozenset[str]]:
    kept = {name for name, node in new.items() if name in old and old[name].operator == node.operator}
    makers = {value: node for node in old.values() for value in node.outputs if value}
    earlier = {value: value for node in old.values() for value in (*node.inputs, *node.outputs) if value}
    for name in kept:
        for values, before in ((new[name].outputs, old[name].outputs), (new[name].inputs, old[name].inputs)):
            earlier.update(zip(values, before, strict=False))
    traced = {name: origins[name] for name in kept}
    for group in _groups([node for node in new.values() if node.name not in kept], earlier):
        ends = {earlier[value] for node in group for value in node.read if value in earlier}
        results = [earlier[value] for node in group for value in node.outputs if value in earlier]
        gone = set(_between(results, ends, makers, kept))
        made_of = frozenset(origin for name in gone for origin in origins[name])
        traced.update({node.name: made_of for node in group})
    return traced


def _between(results: Iterable[str], ends: set[str], makers: Mapping[str, ModelNode], kept: set[str]) -> Iterator[str]:
    """The names of the nodes that compute ``results`` from ``ends``, without those that were kept."""
    pending, seen = list(results), set(ends)
    while pending:
        value = pending.pop()
        maker = makers.get(value)
        if value in seen or maker is None or maker.name in kept:
            continue
        seen.add(value)
        yield maker.name
        pending += maker.read


def _groups(nodes: Sequence[ModelNode], earlier: Mapping[str, str]) -> Iterator[list[ModelNode]]:
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
