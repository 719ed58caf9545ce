"""Nodes that may run while rows of a layer travel: a shared expert."""

from __future__ import annotations

from collections.abc import Set

from moec.exploring.model_nodes import ModelNode, ModelNodes

_PRODUCTS = frozenset({"MatMul", "Gemm", "moec.Linear"})


def beside(model: ModelNodes, name: str) -> frozenset[str]:
    """Find the nodes whose results join those of node ``name``, and which neither need it nor are needed by it.

    The first node where products with weights join counts; joins of sizes, for reshapes, do not. Empty where nothing
    joins.
    """
    producers = {value: node for node in model.nodes for value in node.outputs if value}

    def needed(node: ModelNode, boundary: Set[str]) -> dict[str, ModelNode]:
        """Collect the nodes that a node needs, by their names: itself, and others except through ``boundary`` ones."""
        collected, waiting = {node.name: node}, [node]
        while waiting:
            read = (producers[value] for value in waiting.pop().read if value in producers)
            new = {each.name: each for each in read if each.name not in collected and each.name not in boundary}
            collected |= new
            waiting += new.values()
        return collected

    block = next((node for node in model.nodes if node.name == name), None)
    if block is None:
        return frozenset()
    before, after = needed(block, set()).keys(), {name}
    for node in model.nodes:
        read = {producers[value].name for value in node.read if value in producers}
        if read & after:
            after.add(node.name)
            joined = needed(node, before | after)
            if any(each.operator in _PRODUCTS for key, each in joined.items() if key != node.name):
                return frozenset(joined) - {node.name}
    return frozenset()
