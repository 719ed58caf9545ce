"""Routing weights in the form in which onnxruntime's operators of whole MoE layers take them.

``com.microsoft.MoE`` and ``QMoE`` take logits [T,E], select the k largest of their softmax, and on request divide by
the sum of these. Given the logarithm of each selected expert's weight, and a number far below for all others, they
select exactly those experts, in any order, and weigh them by their shares of the token's sum. The output is multiplied
by that sum afterwards, where it is not 1. Weights of 0, and of pairs that were dropped, are shares of 0, which the
kernel skips; the result of a token without any pair is multiplied by 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.ir import dialect
from moec.ir.dialect import ExpertsSpec, RouteSpec
from moec.ir.expert_ids import routing_of
from moec.ir.expert_weights import ExpertWeights
from moec.ir.intervals import MOST_BOUNDS, intervals
from moec.ir.rule import known_size
from moec.ir.weights.stored import constant
from moec.passes.graph.writer import Writer, as_float32

Array = np.ndarray[Any, Any]
_LEAST = -1e4
"""A logarithm whose exponential is 0 beside that of any weight, and which a float16 holds."""
_SIGNED = ("identity",)
"""Scores that may be negative."""
_MOST_NODES = 100
"""Nodes in front of weights that are looked at."""


@dataclasses.dataclass(frozen=True)
class Routed:
    """Inputs of an operator with experts of its own, and what its output is multiplied by and added to."""

    x: ir.Value
    logits: ir.Value
    total: ir.Value | None
    added: ir.Value | None

    def completed(self, write: Writer, y: ir.Value) -> ir.Value:
        """Multiply and add to the output of the operator."""
        if self.total is not None:
            y = write.add("Mul", y, self.total, label="weighted")
        return y if self.added is None else write.add("Add", y, self.added, label="with_identity")


def why_not_routed(node: ir.Node, spec: ExpertsSpec) -> str | None:
    """Explain why the weights and ids of a ``moec.Experts`` node cannot be given as logits; None where they can."""
    if spec.weight_on_input:
        several = "the routing weights of several experts per token multiply their inputs"
        return None if known_size(dialect.inputs_of(node)["weights"], 1) == 1 else several
    route, shares = _route_of(node), dialect.inputs_of(node)["weights"]
    if route is None:
        others = "the routing weights are computed by other operators than a router, and may be negative"
        return None if _is_not_negative(shares) else others
    routing = dialect.spec_of(route, RouteSpec)
    scores_are_signed = routing.score in _SIGNED and not _is_not_negative(dialect.inputs_of(route)["logits"])
    if scores_are_signed or routing.scale < 0:
        return f"routing weights by the score {routing.score!r} may be negative"
    return None


def _is_not_negative(value: ir.Value | None) -> bool:
    """Whether no number of a value is negative, by what is known of the nodes in front of it."""
    graph = None if value is None else value.graph
    if value is None or not isinstance(graph, ir.Graph):
        return False
    pending, ancestors = [value.producer()], set[ir.Node]()
    while pending and len(ancestors) < _MOST_NODES:
        node = pending.pop()
        if node is None or node in ancestors or node.graph is not graph:
            continue
        ancestors.add(node)
        pending += [operand.producer() for operand in node.inputs if operand is not None]
    bounds = intervals([node for node in graph if node in ancestors], {}, _numbers)
    return value in bounds and bool(bounds[value].whole.low >= 0)


def _numbers(value: ir.Value) -> Array | None:
    tensor = constant(value)
    return None if tensor is None or tensor.size > MOST_BOUNDS else tensor.numpy()


def routed(write: Writer, weights: ExpertWeights) -> Routed:
    """Write the inputs of an operator that takes the place of a ``moec.Experts`` node."""
    inputs, spec = dialect.inputs_of(write.node), weights.spec
    x, ids, shares = inputs["x"], inputs["experts"], inputs["weights"]
    assert x is not None and ids is not None and shares is not None
    dtype = x.dtype or ir.DataType.FLOAT
    if spec.weight_on_input:
        x = write.add("Mul", x, shares, label="scaled")
        there = write.add("GreaterOrEqual", ids, write.constant(np.array(0, np.int32), "zero"))
        shares, sums_to_scale = write.add("Cast", there, to=ir.DataType.FLOAT, label="there"), False
    else:
        shares, sums_to_scale = _dropped_are_zero(write, ids, as_float32(write, shares)), _sum_is_scale(write.node)
    dense = _dense(write, ids, shares, weights.experts + spec.identity_experts)
    total, added = None, None
    if spec.identity_experts:
        own, rest = (_columns(write, dense, *ends) for ends in ((0, weights.experts), (weights.experts, 1 << 31)))
        added = write.add("Mul", x, _sum(write, rest, dtype, "identity_share"), label="identity")
        dense, total = own, _sum(write, own, dtype, "total")
    elif not sums_to_scale:
        total = _sum(write, shares, dtype, "total")
    elif (scale := _scale(write.node)) != 1:
        total = write.weight(ir.tensor(np.array(scale, dtype.numpy()), dtype=dtype), "scale")
    return Routed(x, _logarithms(write, dense, dtype), total, added)


def _sum(write: Writer, shares: ir.Value, dtype: ir.DataType, label: str) -> ir.Value:
    """The sums [T,1] of weights."""
    total = write.add("ReduceSum", shares, write.numbers(1), keepdims=1, label=label)
    return total if dtype == ir.DataType.FLOAT else write.add("Cast", total, to=dtype, label=label)


def _dropped_are_zero(write: Writer, ids: ir.Value, shares: ir.Value) -> ir.Value:
    """The weights, 0 where a table between router and experts drops a pair; those that a router drops are 0 already."""
    route = _route_of(write.node)
    if route is not None and ids is route.outputs[1]:
        return shares
    zero = write.constant(np.array(0, np.float32), "zero")
    dropped = write.add("Less", ids, write.constant(np.array(0, np.int32), "zero"), label="dropped")
    return write.add("Where", dropped, zero, shares, label="kept")


def _dense(write: Writer, ids: ir.Value, shares: ir.Value, count: int) -> ir.Value:
    """Weights [T,count] of all experts; those of pairs with one expert are added up. The id -1 adds 0 to the last."""
    tokens = write.add("Shape", ids, start=0, end=1, label="tokens")
    shape = write.add("Concat", tokens, write.numbers(count), axis=0, label="shape")
    zero = ir.tensor(np.zeros(1, np.float32))
    zeros = write.add("ConstantOfShape", shape, value=zero, label="zeros")
    return write.add("ScatterElements", zeros, ids, shares, axis=1, reduction="add", label="shares")


def _columns(write: Writer, dense: ir.Value, start: int, end: int) -> ir.Value:
    return write.add("Slice", dense, write.numbers(start), write.numbers(end), write.numbers(1), label="own")


def _logarithms(write: Writer, dense: ir.Value, dtype: ir.DataType) -> ir.Value:
    """Logarithms of the weights of all experts. Those in float16 are less the largest of the token, so that large
    weights have logarithms near 0, where float16 has the smallest steps."""
    least = write.constant(np.array(_LEAST, np.float32), "least")
    logits = write.add("Max", write.add("Log", dense), least, label="logits")
    if dtype == ir.DataType.FLOAT:
        return logits
    largest = write.add("ReduceMax", logits, write.numbers(1), keepdims=1, label="largest")
    below = write.add("Max", write.add("Sub", logits, largest), least, label="below")
    return write.add("Cast", below, to=dtype, label="logits")


def _route_of(node: ir.Node) -> ir.Node | None:
    """The ``moec.Route`` whose weights the node takes; None where other operators compute or change them."""
    try:
        return routing_of(node).route
    except UnsupportedError:
        return None


def _sum_is_scale(node: ir.Node) -> bool:
    """Whether the weights of each token are known to sum to the router's ``scale``."""
    route = _route_of(node)
    if route is None or dialect.inputs_of(node)["experts"] is not route.outputs[1]:
        return False
    spec = dialect.spec_of(route, RouteSpec)
    if spec.capacity or spec.threshold is not None or spec.relative_threshold:
        return False
    if spec.score == "softmax" and spec.selection == "all" and not spec.normalize:
        return True
    is_divided = spec.normalize and not spec.normalize_epsilon and not spec.normalize_floor
    return is_divided or (spec.score == "softmax_topk" and not spec.normalize)


def _scale(node: ir.Node) -> float:
    route = _route_of(node)
    assert route is not None
    return dialect.spec_of(route, RouteSpec).scale
