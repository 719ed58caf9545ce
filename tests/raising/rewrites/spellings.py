"""Functions of numbers by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..edit import Writer, array_of, attribute, ints, nodes, some, substitute
from ..registry import rewrite

Spelling = Callable[[Writer, ir.Value, ir.Node], ir.Value]


def _of(op_type: str, spelling: Spelling, allowed: Callable[[ir.Node], bool] = lambda _node: True) -> None:
    """Another spelling of some nodes of an operator, of their first input."""

    def apply(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
        chosen = some(random, filter(allowed, nodes(model, op_type)))
        for node in chosen:
            x = node.inputs[0]
            assert x is not None
            substitute(node, spelling(Writer(model, node), x, node))
        return model if chosen else None

    apply.__name__ = spelling.__name__
    rewrite(apply)


def _exactly(node: ir.Node) -> bool:
    return attribute(node, "approximate", "none") == "none"


def sigmoid_by_exp(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("Reciprocal", write.op("Add", 1.0, write.op("Exp", write.op("Neg", x))))


def sigmoid_by_division(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("Div", 1.0, write.op("Add", write.op("Exp", write.op("Mul", x, -1.0)), 1.0))


def sigmoid_by_tanh(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    half = write.op("Mul", x, 0.5)
    return write.op("Add", write.op("Mul", write.op("Tanh", half), 0.5), 0.5)


def relu_by_max(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("Max", x, 0.0)


def relu_by_clip(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("Clip", x, 0.0)


def relu_by_where(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("Where", write.op("Greater", x, 0.0), x, 0.0)


def relu_by_leaky_relu(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    return write.op("LeakyRelu", x, alpha=0.0)


def gelu_by_erf(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    error = write.op("Erf", write.op("Div", x, float(np.sqrt(2))))
    return write.op("Mul", write.op("Mul", x, write.op("Add", error, 1.0)), 0.5)


def gelu_by_erf_of_a_product(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    error = write.op("Erf", write.op("Mul", x, float(np.sqrt(0.5))))
    return write.op("Mul", write.op("Mul", 0.5, x), write.op("Add", 1.0, error))


def tanh_gelu_by_hand(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    cube = write.op("Pow", x, 3.0)
    inner = write.op("Mul", write.op("Add", x, write.op("Mul", cube, 0.044715)), float(np.sqrt(2 / np.pi)))
    return write.op("Mul", write.op("Mul", x, 0.5), write.op("Add", write.op("Tanh", inner), 1.0))


def tanh_gelu_by_sigmoid(write: Writer, x: ir.Value, _node: ir.Node) -> ir.Value:
    cube = write.op("Mul", write.op("Mul", x, x), x)
    inner = write.op("Mul", write.op("Add", x, write.op("Mul", cube, 0.044715)), float(2 * np.sqrt(2 / np.pi)))
    return write.op("Mul", x, write.op("Sigmoid", inner))


def softmax_by_hand(write: Writer, x: ir.Value, node: ir.Node) -> ir.Value:
    axes = ints(attribute(node, "axis", -1))
    return _shares(write, write.op("Sub", x, write.op("ReduceMax", x, axes, keepdims=1)), axes)


def softmax_without_maximum(write: Writer, x: ir.Value, node: ir.Node) -> ir.Value:
    """For logits that do not overflow."""
    return _shares(write, x, ints(attribute(node, "axis", -1)))


def _shares(write: Writer, x: ir.Value, axes: np.ndarray) -> ir.Value:
    powers = write.op("Exp", x)
    return write.op("Div", powers, write.op("ReduceSum", powers, axes, keepdims=1))


def softmax_by_logsumexp(write: Writer, x: ir.Value, node: ir.Node) -> ir.Value:
    axes = ints(attribute(node, "axis", -1))
    return write.op("Exp", write.op("Sub", x, write.op("ReduceLogSumExp", x, axes, keepdims=1)))


def softmax_by_log_softmax(write: Writer, x: ir.Value, node: ir.Node) -> ir.Value:
    return write.op("Exp", write.op("LogSoftmax", x, axis=attribute(node, "axis", -1)))


for _op_type, _spelling in (
    ("Sigmoid", sigmoid_by_exp),
    ("Sigmoid", sigmoid_by_division),
    ("Sigmoid", sigmoid_by_tanh),
    ("Relu", relu_by_max),
    ("Relu", relu_by_clip),
    ("Relu", relu_by_where),
    ("Relu", relu_by_leaky_relu),
    ("Softmax", softmax_by_hand),
    ("Softmax", softmax_without_maximum),
    ("Softmax", softmax_by_logsumexp),
    ("Softmax", softmax_by_log_softmax),
):
    _of(_op_type, _spelling)
for _spelling in (gelu_by_erf, gelu_by_erf_of_a_product):
    _of("Gelu", _spelling, _exactly)
for _spelling in (tanh_gelu_by_hand, tanh_gelu_by_sigmoid):
    _of("Gelu", _spelling, lambda node: not _exactly(node))


@rewrite
def silu_by_division(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """x * sigmoid(x) as x / (1 + exp(-x))."""
    results = []
    for node in nodes(model, "Mul"):
        for x, factor in (node.inputs, node.inputs[::-1]):
            sigmoid = None if factor is None else factor.producer()
            if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.inputs[0] is x:
                results.append((node, x))
                break
    chosen = some(random, results)
    for node, x in chosen:
        write = Writer(model, node)
        substitute(node, write.op("Div", x, write.op("Add", write.op("Exp", write.op("Neg", x)), 1.0)))
    return model if chosen else None


@rewrite
def division_by_reciprocal(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, [node for node in nodes(model, "Div") if array_of(node.inputs[1]) is None])
    for node in chosen:
        write = Writer(model, node)
        substitute(node, write.op("Mul", node.inputs[0], write.op("Reciprocal", node.inputs[1])))
    return model if chosen else None


@rewrite
def operands_swapped(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, nodes(model, "Mul", "Add"))
    for node in chosen:
        first, second = node.inputs
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
    return model if chosen else None


@rewrite
def addition_by_sum(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, nodes(model, "Add"))
    for node in chosen:
        substitute(node, Writer(model, node).op("Sum", *node.inputs))
    return model if chosen else None


@rewrite
def subtraction_of_the_negative(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    chosen = some(random, nodes(model, "Add"))
    for node in chosen:
        write = Writer(model, node)
        substitute(node, write.op("Sub", node.inputs[0], write.op("Neg", node.inputs[1])))
    return model if chosen else None


@rewrite
def factors_regrouped(model: ir.Model, random: np.random.Generator) -> ir.Model | None:
    """(a * b) * c as a * (b * c)."""
    results = []
    for node in nodes(model, "Mul"):
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        if inner is not None and inner.op_type == "Mul" and len(inner.outputs[0].uses()) == 1:
            results.append((node, inner))
    chosen = some(random, results)[:1]
    for node, inner in chosen:
        write = Writer(model, node)
        substitute(node, write.op("Mul", inner.inputs[0], write.op("Mul", inner.inputs[1], node.inputs[1])))
    return model if chosen else None
