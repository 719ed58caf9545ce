"""What the operators of a model ask of its inputs' sizes, beyond fitting each other: guards that need no exporter.

TopK chooses among an axis that must have as many elements as it is to choose. ONNX leaves open what it does otherwise;
onnxruntime fails. A traced export may hold the count of its example's length: shorter inputs must not get an answer.
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

    if not any(is_op(node, "TopK") for node in model.graph):
        return []
    bound = bound_names([spec.shape for spec in tensor_specs(model.graph.inputs)])
    model = model.clone()
    shapes.infer(model)
    found = dict.fromkeys(guard for node in model.graph if is_op(node, "TopK") for guard in _of_top_k(node))
    return [guard for guard in found if set(parse_guard(guard).names) <= bound]


def _of_top_k(node: ir.Node) -> Iterator[str]:
    from moec.passes.graph.edits import constant
    from moec.passes.shapes.symbolic import expression, text_of

    data, count = node.inputs[0], constant(node.inputs[1])
    if data is None or data.shape is None or count is None:
        return
    size = expression(data.shape[node.attributes.get_int("axis", -1)])
    if size is not None and not size.is_number:
        yield f"{int(count.item())} <= {text_of(size)}"
