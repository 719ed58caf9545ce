"""Dense products as ``moec.Linear``, the operator whose weights may be stored in any format."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.passes.rewriting import is_op, replace_value

NONE_FOUND = "no dense product was found with a constant weight of {} elements (option minimum) or more"

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_PASSED_THROUGH = (
    *("Add", "Cast", "Clip", "Div", "Expand", "Flatten", "Gather", "Identity", "Mul", "Neg", "Reshape", "Sigmoid"),
    *("Slice", "Softmax", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where"),
)
"""Operators that logits may pass on their way from the router's product to the routing."""


def make_linears(graph: ir.Graph, minimum: int, routers: bool) -> Iterator[ir.Node]:
    """Replace products by ``moec.Linear`` and yield all Linear nodes that were made or there already.

    Left out are weights of fewer than ``minimum`` elements and, unless ``routers``, products whose result becomes the
    logits of a router.
    """
    for node in list(graph):
        if dialect.is_moec(node, "Linear"):
            yield node
        elif _is_dense(node, minimum) and (routers or not _becomes_logits(node.outputs[0], set())):
            yield _make_linear(graph, node)


def _is_dense(node: ir.Node, minimum: int) -> bool:
    """A MatMul, or a Gemm that only adds a bias, of rows and a constant float matrix."""
    if not is_op(node, "MatMul", "Gemm"):
        return False
    x, weight, *rest = node.inputs
    tensor = ir.convenience.get_const_tensor(weight) if weight is not None and not weight.is_graph_input() else None
    if x is None or tensor is None or len(tensor.shape) != 2 or tensor.size < minimum or tensor.dtype not in _FLOATS:
        return False
    if node.op_type == "MatMul":
        return True
    bias = rest[0] if rest else None
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    usual = all(key not in node.attributes or node.attributes[key].value == value for key, value in plain.items())
    return usual and (bias is None or (bias.shape is not None and bias.shape == (_outputs(node),)))


def _outputs(node: ir.Node) -> int:
    tensor = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    assert tensor is not None
    return int(tensor.shape.numpy()[1 if _transposed(node) else 0])


def _transposed(node: ir.Node) -> bool:
    """Whether the weight is [K,N], as it is unless a Gemm says otherwise."""
    return "transB" not in node.attributes or not node.attributes["transB"].as_int()


def _becomes_logits(value: ir.Value, seen: set[ir.Value]) -> bool:
    """Whether a routing operator takes this value, or what simple operators make of it, as its logits."""
    if value in seen:
        return False
    seen.add(value)
    for user, _ in value.uses():
        if dialect.is_moec(user) and dialect.inputs_of(user).get("logits") is value:
            return True
        if is_op(user, *_PASSED_THROUGH) and any(_becomes_logits(output, seen) for output in user.outputs):
            return True
    return False


def _make_linear(graph: ir.Graph, node: ir.Node) -> ir.Node:
    x, weight, bias = (*node.inputs, None)[:3]
    inputs = {"x": x, "weight": weight, "bias": bias}
    linear = dialect.make_node("Linear", inputs, LinearSpec(transposed=_transposed(node)), name=node.name)
    old, new = node.outputs[0], linear.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(node, linear)
    if old.is_graph_output():
        replace_value(old, new)
    else:
        old.name = f"{old.name}_replaced"
        old.replace_all_uses_with(new)
    graph.remove(node, safe=True)
    return linear
