"""Spelled-out normalisations become one operator."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import constant, constant_number, is_op, replace_value


@dataclasses.dataclass(frozen=True)
class FuseNormalization:
    """Fuses normalisations over the last axis.

    1. ``x * s * 1 / sqrt(mean(x^2) + epsilon)`` becomes RMSNormalization (x, s); the square is Pow(x, 2) or Mul(x, x);
       the division is Div, Reciprocal, Div(1, .) or Pow(., -0.5). The scale s is a vector of the size of the last axis.
    2. ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * s + b`` becomes LayerNormalization (x, s, b).
    3. The same without s, or with a factor that is no such vector: s is made of ones. Exporters leave out weights of
       one, and so do other passes.
    4. Casts: x may be cast to float32 before, and the quotient cast back before the scale; the fused operator computes
       in float32 (``stash_type`` 1) in between.

    ::

        (float[T,8] x) => (float[T,8] y) <float[8] scale, float epsilon = {0.01}, int64[1] last = {-1}> {
           squares = Mul (x, x)
           mean = ReduceMean (squares, last)
           guarded = Add (mean, epsilon)
           root = Sqrt (guarded)
           normal = Div (x, root)
           y = Mul (normal, scale)
        }
            infer-shapes,fuse-normalization,remove-dead-nodes ->
        (float[T,8] x) => (float[T,8] y) <float[8] scale> {
           y = RMSNormalization <axis = -1, epsilon = 0.01, stash_type = 1> (x, scale)
        }
    """

    name: ClassVar[str] = "fuse-normalization"
    exactness: ClassVar[Exactness] = "reassociating"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        for op_types, fuse in ((("Mul",), _fuse), (("Cast",), _fuse_unscaled), (("Mul", "Div"), _fuse_unscaled)):
            for node in list(model.graph):
                if node.graph is not None and is_op(node, *op_types):
                    changed |= fuse(model.graph, node)
        return changed


@dataclasses.dataclass(frozen=True)
class _Normalized:
    """``x / sqrt(mean(square(x)) + epsilon)``, where x may be the input minus its mean (``centred``)."""

    x: ir.Value
    epsilon: float
    centred: bool


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    for normalized, scale in _operands(node):
        norm = _normalized(_uncast(normalized))
        if norm is None or not _is_vector_for(scale, norm.x):
            continue
        source = _source(norm.x, normalized)
        if source is None or source.dtype != node.outputs[0].dtype or scale.dtype != source.dtype:
            continue
        if norm.centred:
            return _replace_by_layer_norm(graph, node, source, scale, norm.epsilon)
        return _replace(graph, node, "RMSNormalization", [source, scale], norm.epsilon)
    return False


def _fuse_unscaled(graph: ir.Graph, node: ir.Node) -> bool:
    """Fuse a quotient without a scale, or the cast after such a quotient, with a scale of ones."""
    normalized = node.outputs[0]
    norm = _normalized(_uncast(normalized))
    source = None if norm is None else _source(norm.x, normalized)
    if norm is None or source is None or source.dtype is None or source.dtype != normalized.dtype:
        return False
    width = source.shape[-1] if source.shape else None
    if not isinstance(width, int):
        return False
    ones = ir.tensor(np.ones(width, source.dtype.numpy()))
    scale = add_constant(graph, ones, f"{normalized.name}_scale")
    if norm.centred:
        return _replace_by_layer_norm(graph, node, source, scale, norm.epsilon)
    return _replace(graph, node, "RMSNormalization", [source, scale], norm.epsilon)


def _replace_by_layer_norm(graph: ir.Graph, node: ir.Node, x: ir.Value, scale: ir.Value, epsilon: float) -> bool:
    """Replace a scaled quotient by LayerNormalization, with its bias if an addition of one is the product's only
    use."""
    (product,) = node.outputs
    uses = list(product.uses())
    if len(uses) == 1 and not product.is_graph_output() and is_op(uses[0].node, "Add"):
        addition = uses[0].node
        bias = next((value for value in addition.inputs if value is not product), None)
        if bias is not None and _is_vector_for(bias, x) and bias.dtype == x.dtype:
            return _replace(graph, addition, "LayerNormalization", [x, scale, bias], epsilon)
    return _replace(graph, node, "LayerNormalization", [x, scale], epsilon)


def _replace(graph: ir.Graph, node: ir.Node, op_type: str, inputs: list[ir.Value], epsilon: float) -> bool:
    fused = ir.node(op_type, inputs, attributes={"axis": -1, "epsilon": epsilon, "stash_type": 1})
    fused.outputs[0].shape, fused.outputs[0].type = node.outputs[0].shape, node.outputs[0].type
    fused.outputs[0].name = f"{node.outputs[0].name}_fused"
    graph.insert_before(node, fused)
    if not replace_value(node.outputs[0], fused.outputs[0]):
        graph.remove(fused, safe=True)
        return False
    graph.remove(node, safe=True)
    return True


def _operands(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """The two inputs of a commutative node in both orders."""
    first, second = node.inputs
    return [] if first is None or second is None else [(first, second), (second, first)]


def _uncast(value: ir.Value) -> ir.Value:
    producer = value.producer()
    return producer.inputs[0] if is_op(producer, "Cast") and producer.inputs[0] is not None else value


def _source(x: ir.Value, normalized: ir.Value) -> ir.Value | None:
    """The input of the fused operator: x itself, or the value before its cast to float32 if the quotient is cast
    back."""
    if normalized.dtype == x.dtype:
        return x
    source = _uncast(x)
    return source if x.dtype == ir.DataType.FLOAT and source.dtype == normalized.dtype else None


def _is_vector_for(value: ir.Value, x: ir.Value) -> bool:
    """Whether this is a vector as long as the last axis of x, both statically known."""
    if value.shape is None or x.shape is None or len(value.shape) != 1 or len(x.shape) == 0:
        return False
    return isinstance(x.shape[-1], int) and value.shape[0] == x.shape[-1]


def _normalized(value: ir.Value) -> _Normalized | None:
    """Recognise the quotient: Div(x, root), Mul(x, Reciprocal(root)), Mul(x, Div(1, root)) or Mul(x, Pow(., -0.5))."""
    node = value.producer()
    if is_op(node, "Div"):
        x, root = node.inputs
        square = _square_of_root(root)
        return None if x is None or square is None else _with_square(x, square)
    if is_op(node, "Mul"):
        for x, factor in _operands(node):
            square = _square_of_inverse_root(factor)
            if square is not None:
                return _with_square(x, square)
    return None


def _square_of_inverse_root(value: ir.Value) -> ir.Value | None:
    """s where the value is 1 / sqrt(s)."""
    node = value.producer()
    if is_op(node, "Pow") and constant_number(node.inputs[1]) == -0.5:
        return node.inputs[0]
    if is_op(node, "Reciprocal"):
        return _square_of_root(node.inputs[0])
    if is_op(node, "Div") and constant_number(node.inputs[0]) == 1.0:
        return _square_of_root(node.inputs[1])
    return None


def _square_of_root(value: ir.Value | None) -> ir.Value | None:
    """s where the value is sqrt(s)."""
    node = None if value is None else value.producer()
    return node.inputs[0] if is_op(node, "Sqrt") else None


def _with_square(x: ir.Value, square: ir.Value) -> _Normalized | None:
    """Check that square is mean(x^2) + epsilon of this very x, in x's type."""
    addition = square.producer()
    if not is_op(addition, "Add"):
        return None
    for mean, epsilon_value in _operands(addition):
        epsilon = constant_number(epsilon_value)
        squares = _mean_of(mean)
        if epsilon is None or squares is None or not _is_square_of(squares, x):
            continue
        centre = _centre(x)
        return _Normalized(x, epsilon, False) if centre is None else _Normalized(centre, epsilon, True)
    return None


def _mean_of(value: ir.Value) -> ir.Value | None:
    """v where the value is the mean of v over its last axis, kept with size 1."""
    node = value.producer()
    if not is_op(node, "ReduceMean") or len(node.inputs) < 2 or not node.attributes.get_int("keepdims", 1):
        return None
    axes, source = constant(node.inputs[1]), node.inputs[0]
    if axes is None or axes.size != 1 or source is None or source.shape is None:
        return None
    return source if int(axes.ravel()[0]) in (-1, len(source.shape) - 1) else None


def _is_square_of(value: ir.Value, x: ir.Value) -> bool:
    node = value.producer()
    if is_op(node, "Mul"):
        return all(factor is x for factor in node.inputs)
    return is_op(node, "Pow") and node.inputs[0] is x and constant_number(node.inputs[1]) == 2.0


def _centre(x: ir.Value) -> ir.Value | None:
    """v where x is v - mean(v)."""
    node = x.producer()
    if not is_op(node, "Sub") or node.inputs[0] is None or node.inputs[1] is None:
        return None
    return node.inputs[0] if _mean_of(node.inputs[1]) is node.inputs[0] else None
