"""The nodes that lie between two values of a graph."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir


def nodes_between(source: ir.Value, result: ir.Value, is_included: Callable[[ir.Node], bool]) -> list[ir.Node]:
    """The nodes between ``source`` and ``result``, with those that make constants, for which ``is_included`` holds."""
    nodes: list[ir.Node] = []
    seen: set[ir.Node] = set()
    pending = [result]
    while pending:
        value = pending.pop()
        node = None if value is source else value.producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if is_included(node):
            nodes.append(node)
        pending += [operand for operand in node.inputs if operand is not None]
    return nodes
