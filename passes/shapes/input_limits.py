"""Below which value an integer input must stay: token ids below the size of the vocabulary, say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moec.ir.movement import MOVEMENTS

if TYPE_CHECKING:
    import onnx_ir as ir


def input_limits(model: ir.Model) -> dict[str, int]:
    """Limits of the integer inputs that index a tensor (token ids, an embedding): the size of the axis, which valid
    numbers are below. Inputs that index no axis of a known size are left out."""
    limits: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.dtype is not None and value.dtype.is_integer():
            indexed = _indexed_sizes(value)
            if indexed:
                limits[value.name or ""] = min(indexed)
    return limits


def _indexed_sizes(value: ir.Value) -> list[int]:
    """The sizes of the axes that ``value`` indexes by Gather, directly or after nodes that keep its values."""
    sizes, pending, seen = [], [value], {value}
    while pending:
        for node, position in pending.pop().uses():
            if node.op_type == "Gather" and position == 1:
                size = _gathered_size(node)
                if size is not None:
                    sizes.append(size)
            elif node.op_type in MOVEMENTS and position == 0:
                pending.extend(output for output in node.outputs if output not in seen)
                seen.update(node.outputs)
    return sizes


def _gathered_size(node: ir.Node) -> int | None:
    data = node.inputs[0]
    if data is None or data.shape is None:
        return None
    attribute = node.attributes.get("axis")
    size = data.shape[attribute.as_int() if attribute else 0]
    return size if isinstance(size, int) else None
