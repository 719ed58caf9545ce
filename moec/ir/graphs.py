"""Walking graphs that hold graphs (the bodies of If, Loop and Scan)."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs directly inside a node."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
