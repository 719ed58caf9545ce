"""Conditions on the sizes of a model's inputs that single operators imply, without guards of an exporter.

TopK needs an axis with at least as many elements as it selects. Gather of an element at a known place needs that
element. ONNX leaves open what they do otherwise, and onnxruntime fails. A traced export may contain the number that
fits its example's length; shorter inputs must not get an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def needed_sizes(model: ir.Model) -> list[str]:
    """Conditions on named sizes of the inputs (:mod:`moec.common.guards`)."""
    from moec.common.guards import bound_names, parse_guard
    from moec.common.specs import tensor_specs
    from moec.ir import shapes
    from moec.passes.graph.edits import is_op

    if not any(is_op(node, "TopK") or _picks(node) for node in model.graph):
        return []
    bound = bound_names([spec.shape for spec in tensor_specs(model.graph.inputs)])
    model = model.clone()
    shapes.infer(model)
    guards = dict.fromkeys(guard for node in model.graph for guard in (*_of_top_k(node), *_of_gather(node)))
    return [guard for guard in guards if set(parse_guard(guard).names) <= bound]


def _of_top_k(node: ir.Node) -> Iterator[str]:
    from moec.passes.graph.edits import constant, is_op

    count = constant(node.inputs[1]) if is_op(node, "TopK") else None
    if count is not None:
        yield from _at_least(int(count.item()), node.inputs[0], node.attributes.get_int("axis", -1))


def _of_gather(node: ir.Node) -> Iterator[str]:
    from moec.passes.graph.edits import constant

    places = constant(node.inputs[1]) if _picks(node) else None
    if places is not None:
        count = max(int(places.max()) + 1, -int(places.min()))
        yield from _at_least(count, node.inputs[0], node.attributes.get_int("axis", 0))


def _picks(node: ir.Node) -> bool:
    """Whether this is a Gather at known places of an axis of unknown size."""
    from moec.passes.graph.edits import constant, is_op

    if not is_op(node, "Gather") or node.inputs[0] is None or not node.inputs[0].shape:
        return False
    places = constant(node.inputs[1])
    size = node.inputs[0].shape[node.attributes.get_int("axis", 0)]
    return places is not None and places.size > 0 and not isinstance(size, int)


def _at_least(count: int, data: ir.Value | None, axis: int) -> Iterator[str]:
    from moec.passes.shapes.symbolic import expression, text_of

    size = None if data is None or data.shape is None else expression(data.shape[axis])
    if size is not None and not size.is_number:
        yield f"{count} <= {text_of(size)}"
