"""The opset that the graphs of moec are in, and the operators that came after it.

A graph is at opset ``OPSET``. Operators that first appeared in a later one, up to ``NEWEST``, are known beside those
of ``OPSET``: since then operators that were there before got element types, texts and attributes, and nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

import onnx_ir as ir
from onnx import defs

OPSET = 24
NEWEST = min(28, defs.onnx_opset_version())


@functools.cache
def since(operator: str, version: int = OPSET) -> int | None:
    """The opset that gave an operator of the ONNX domain its meaning in ``version``; None if it is not there."""
    try:
        return defs.get_schema(operator, version, "").since_version
    except defs.SchemaError:
        return None


def later_attributes(node: ir.Node) -> list[str]:
    """The attributes of an operator of ``OPSET`` that only a later one gave it."""
    if node.domain != "" or since(node.op_type) in (None, since(node.op_type, NEWEST)):
        return []
    current, later = (defs.get_schema(node.op_type, version, "").attributes for version in (OPSET, NEWEST))
    return [name for name in node.attributes if name in later and name not in current]


def version_for(nodes: Iterable[ir.Node], version: int = OPSET) -> int:
    """The opset by which ONNX's own tools understand all of these nodes: ``version``, or ``NEWEST`` where one of them
    needs a later one."""
    if version != OPSET:
        return version
    later = (node.domain == "" and (since(node.op_type) is None or later_attributes(node)) for node in nodes)
    return NEWEST if any(later) else version
