"""Dense products as ``moec.Linear``, the operator whose weights may be stored in any format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeGuard

import onnx_ir as ir

from moec.ir import dialect
from moec.ir.dialect import LinearSpec
from moec.ir.movement import MOVEMENTS
from moec.ir.weight_operands import weight_inputs
from moec.passes.graph.edits import is_op, replace_value

MINIMUM = 65536
"""Default of the least number of elements of a dense product's weight."""
NONE_FOUND = "no dense product was found with a constant weight of {} elements (option minimum) or more"

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_PASSED_THROUGH = (
    *MOVEMENTS,
    *("Add", "Clip", "Div", "Mul", "Neg", "Sigmoid", "Softmax", "Sub", "Tanh", "Where"),
)
"""Operators that logits may pass on their way from the router's product to the routing."""


def products_of(
    graph: ir.Graph, weights: Literal["experts", "linears", "all"], minimum: int, routers: bool
) -> Iterator[ir.Node]:
    """The moec nodes with those weights; of dense products as :func:`make_linears` makes them."""
    if weights != "linears":
        yield from [
            node for node in graph if dialect.is_moec(node) and node.op_type != "Linear" and weight_inputs(node)
        ]
    if weights != "experts":
        yield from make_linears(graph, minimum, routers)


def make_linears(graph: ir.Graph, minimum: int, routers: bool) -> Iterator[ir.Node]:
    """Replace products, with the bias that an Add gives them, by ``moec.Linear`` and yield all Linear nodes that were
    made or there already.

    Left out are weights of fewer than ``minimum`` elements and, unless ``routers``, products whose result becomes the
    logits of a router.
    """
    for node in list(graph):
        if node.graph is None:  # an Add that became a bias
            continue
        is_linear = dialect.is_moec(node, "Linear")
        if not (is_linear or _is_dense(node, minimum)) or (not routers and becomes_logits(node.outputs[0])):
            continue
        yield node if is_linear else make_linear(graph, node)


def _is_dense(node: ir.Node, minimum: int) -> bool:
    """A dense product with a constant float matrix."""
    if not is_dense_product(node):
        return False
    weight = node.inputs[1]
    tensor = ir.convenience.get_const_tensor(weight) if weight is not None and not weight.is_graph_input() else None
    return tensor is not None and tensor.size >= minimum and tensor.dtype in _FLOATS


def is_dense_product(node: ir.Node) -> TypeGuard[ir.Node]:
    """A MatMul, or a Gemm that only adds a bias [N], of rows and a matrix of known size."""
    if not is_op(node, "MatMul", "Gemm"):
        return False
    x, weight, *rest = node.inputs
    if x is None or weight is None or weight.shape is None or len(weight.shape) != 2 or not weight.shape.is_static():
        return False
    if node.op_type == "MatMul":
        return True
    bias = rest[0] if rest else None
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0}
    usual = all(key not in node.attributes or node.attributes[key].value == value for key, value in plain.items())
    return usual and (bias is None or (bias.shape is not None and bias.shape == (_outputs(node),)))


def _outputs(node: ir.Node) -> int | None:
    weight = node.inputs[1]
    size = None if weight is None or weight.shape is None else weight.shape[1 if is_transposed(node) else 0]
    return size if isinstance(size, int) else None


def is_transposed(node: ir.Node) -> bool:
    """Whether the weight is [K,N], as it is unless a Gemm says otherwise."""
    return "transB" not in node.attributes or not node.attributes["transB"].as_int()


def becomes_logits(value: ir.Value) -> bool:
    """Whether a routing operator takes this value as its logits, directly or after simple operators."""
    return _becomes_logits(value, set())


def _becomes_logits(value: ir.Value, seen: set[ir.Value]) -> bool:
    if value in seen:
        return False
    seen.add(value)
    for user, _ in value.uses():
        if dialect.is_moec(user) and dialect.inputs_of(user).get("logits") is value:
            return True
        if is_op(user, *_PASSED_THROUGH) and any(_becomes_logits(output, seen) for output in user.outputs):
            return True
    return False


def _added_bias(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The Add after a MatMul that gives it a constant bias [N], if nothing else uses the product."""
    product = node.outputs[0]
    uses = product.uses()
    if node.op_type != "MatMul" or product.is_graph_output() or len(uses) != 1:
        return None
    ((user, index),) = uses
    bias = user.inputs[1 - index] if is_op(user, "Add") else None
    tensor = ir.convenience.get_const_tensor(bias) if bias is not None and not bias.is_graph_input() else None
    if bias is None or tensor is None or list(tensor.shape) != [_outputs(node)]:
        return None
    return user, bias


def make_linear(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Put ``moec.Linear`` in the place of a dense product."""
    x, weight, bias = (*node.inputs, None)[:3]
    replaced, added = [node], _added_bias(node)
    if added is not None:
        addition, bias = added
        replaced = [addition, node]
    inputs = {"x": x, "weight": weight, "bias": bias}
    linear = dialect.make_node("Linear", inputs, LinearSpec(transposed=is_transposed(node)), name=node.name)
    old, new = replaced[0].outputs[0], linear.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    graph.insert_before(replaced[0], linear)
    if old.is_graph_output():
        replace_value(old, new)
    else:
        old.name = f"{old.name}_replaced"
        old.replace_all_uses_with(new)
    graph.remove(replaced, safe=True)
    return linear
