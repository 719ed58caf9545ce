"""Inputs that tell how long sequences are, by their numbers: an attention mask whose ones are counted, say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moec.ir.graphs import nested_graphs

if TYPE_CHECKING:
    import onnx_ir as ir

_LENGTHS = {
    ("com.microsoft", "GroupQueryAttention"): (5, 6),
    ("", "Attention"): (6,),
    ("", "TensorScatter"): (2,),
}
"""Inputs of operators that hold the number of keys of each sequence: the first keys, whatever a mask's pattern of
ones."""
_MEASURES = frozenset(["Shape", "Size"])


def counted_inputs(model: ir.Model) -> list[str]:
    """The inputs whose numbers, and not sizes alone, lengths of sequences are computed from. A mask among them tells
    how many tokens count and not which, so that it cannot leave out the first ones."""
    pending = [value for node in model.graph.all_nodes() for value in _lengths(node)]
    seen = set(pending)
    while pending:
        node = pending.pop().producer()
        if node is None or node.op_type in _MEASURES:
            continue
        operands = {value: None for value in _operands(node) if value not in seen}
        seen.update(operands)
        pending.extend(operands)
    return [str(value.name) for value in model.graph.inputs if value in seen]


def _lengths(node: ir.Node) -> Iterator[ir.Value]:
    for place in _LENGTHS.get((node.domain, node.op_type), ()):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None:
            yield value


def _operands(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs of a node, and of all nodes of its bodies."""
    nodes = [node, *(inner for graph in nested_graphs(node) for inner in graph.all_nodes())]
    for inner in nodes:
        yield from (value for value in inner.inputs if value is not None)
