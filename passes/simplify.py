"""Removal of nodes that do nothing, alone or together with their neighbour."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from moec.ir.graphs import add_constant
from moec.passes.framework.base import Exactness, Report
from moec.passes.graph.edits import FreshNames, constant, is_op, replace_node, replace_value
from moec.passes.graph.einsum_operands import multiply_first


@dataclasses.dataclass(frozen=True)
class Simplify:
    """Removes no-ops, to a fixed point.

    1. Identity, and Dropout at inference (no mask used): the input.
    2. Cast to the type that the input has. Two Casts in a row stay: the first may round.
    3. Slice with step 1 that takes all: from 0 to the end along every axis it names, or known to keep the shape.
    4. Transpose that permutes nothing; Transpose of a Transpose becomes one.
    5. Reshape of a Reshape becomes the second alone, unless that copies sizes (0) of the first's result; Reshape to the
       shape that the input has, or had before other Reshapes, when all of it is known.
    6. Squeeze undone by Unsqueeze with the same axes, and the reverse.
    7. Expand to constant sizes that the input has, or to nothing but ones.
    8. Concat of one input, Sum, Max, Min of one input, Split into one part.
    9. Mul, Div and Pow by 1, Add and Sub of 0 (except for the sign of zeros), if the result has the shape of the other
       operand; Pad by nothing.
    10. ReduceSum, ReduceMean, ReduceMax, ReduceMin and ReduceProd over axes of size 1: the input, without these axes
        where they are not kept.
    11. Transpose after a Softmax or a function of single elements goes before it, if it is the only user or
        all users are the same Transpose.
    12. Where by a constant that selects only one side.
    13. Neg of a Neg; Sub of a Neg becomes Add, and Add of a Neg Sub; Sub of a short constant vector becomes Add of its
        negative.
    14. Einsum of three operands, if the product of two is no larger than they are: these two are multiplied first.

    ::

        (float[A,B] x) => (float[B,A] y) {
           a = Transpose <perm = [1, 0]> (x)
           b = Identity (a)
           c = Transpose <perm = [1, 0]> (b)
           y = Transpose <perm = [1, 0]> (c)
        }
            simplify,remove-dead-nodes ->
        (float[A,B] x) => (float[B,A] y) {
           y = Transpose <perm = [1, 0]> (x)
        }

    A graph output keeps its name: where that needs it, an Identity stays.
    """

    name: ClassVar[str] = "simplify"
    exactness: ClassVar[Exactness] = "exact"

    def apply(self, model: ir.Model, report: Report) -> bool:
        changed = False
        while _sweep(model.graph):
            changed = True
        return changed


def _sweep(graph: ir.Graph) -> bool:
    changed, names = False, FreshNames(graph)
    for node in list(graph):
        if node.domain or node.graph is not graph:
            continue
        rule, merge = _RULES.get(node.op_type), _MERGES.get(node.op_type)
        rewrite = _REWRITES.get(node.op_type)
        replacement = None if rule is None else rule(node)
        if replacement is not None and replace_value(node.outputs[0], replacement):
            graph.remove(node, safe=True)
            changed = True
        elif replacement is None:
            changed |= (merge is not None and merge(node)) or (rewrite is not None and rewrite(node, names))
    return changed


def _input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0]


def _producer(node: ir.Node, *op_types: str) -> ir.Node | None:
    """The node that makes the first input, when it has one of these operators."""
    before = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    return before if is_op(before, *op_types) else None


def _integers(value: ir.Value | None) -> list[int] | None:
    data = constant(value)
    return None if data is None else [int(item) for item in data.ravel()]


def _same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether both shapes are known and equal, named sizes included."""
    if left.shape is None or right.shape is None or len(left.shape) != len(right.shape):
        return False
    return all(
        size == other and (isinstance(size, int) or size.value is not None)
        for size, other in zip(left.shape, right.shape, strict=True)
    )


def _only_first_output_used(node: ir.Node) -> bool:
    return all(not output.uses() and not output.is_graph_output() for output in node.outputs[1:])


def _dropout(node: ir.Node) -> ir.Value | None:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else np.array(False)
    if training is None or training.item() or not _only_first_output_used(node):
        return None
    return node.inputs[0]


def _cast(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    assert source is not None
    return source if source.dtype is not None and source.dtype == node.attributes["to"].as_int() else None


def _slice(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    assert source is not None
    bounds = [_integers(value) for value in node.inputs[1:]]
    steps_by_one = len(bounds) < 4 or set(bounds[3] or [0]) == {1}
    if steps_by_one and _same_shape(source, node.outputs[0]) and not _leaves_out(bounds, source.shape):
        return source
    starts, ends = bounds[0], bounds[1]
    if starts is None or ends is None or any(start != 0 for start in starts):
        return None
    axes = bounds[2] if len(bounds) > 2 else list(range(len(starts)))
    steps = bounds[3] if len(bounds) > 3 else [1] * len(starts)
    if axes is None or steps is None or any(step != 1 for step in steps):
        return None
    return source if all(_covers(end, source.shape, axis) for end, axis in zip(ends, axes, strict=True)) else None


def _leaves_out(bounds: list[list[int] | None], shape: ir.Shape | None) -> bool:
    """Whether a slice begins or ends at a place that is counted from the end of a size without a number: a file that
    declares the same size for the result, as of the last token's logits, is wrong."""
    if shape is None:
        return False
    for places in filter(None, bounds[:2]):
        axes = bounds[2] if len(bounds) > 2 else range(len(places))
        if any(place < 0 and not isinstance(shape[axis], int) for axis, place in zip(axes or (), places, strict=False)):
            return True
    return False


def _covers(end: int, shape: ir.Shape | None, axis: int) -> bool:
    if end >= np.iinfo(np.int32).max:
        return True
    dim = None if shape is None else shape[axis]
    return isinstance(dim, int) and end >= dim


def _transpose(node: ir.Node) -> ir.Value | None:
    permutation = _permutation(node)
    return node.inputs[0] if permutation is not None and permutation == sorted(permutation) else None


def _permutation(node: ir.Node) -> list[int] | None:
    attribute = node.attributes.get("perm")
    if attribute is not None:
        return list(attribute.as_ints())
    source = node.inputs[0]
    return None if source is None or source.shape is None else list(reversed(range(len(source.shape))))


def _reshape(node: ir.Node) -> ir.Value | None:
    before: ir.Node | None = node
    while is_op(before, "Reshape"):
        source = before.inputs[0]
        assert source is not None
        if _same_shape(source, node.outputs[0]):
            return source
        before = source.producer()
    return None


def _squeeze(node: ir.Node) -> ir.Value | None:
    return _undo(node, "Unsqueeze")


def _unsqueeze(node: ir.Node) -> ir.Value | None:
    return _undo(node, "Squeeze")


def _undo(node: ir.Node, inverse: str) -> ir.Value | None:
    before = _producer(node, inverse)
    if before is None or len(before.inputs) < 2 or len(node.inputs) < 2:
        return None
    first, second = _integers(before.inputs[1]), _integers(node.inputs[1])
    return before.inputs[0] if first is not None and second is not None and sorted(first) == sorted(second) else None


def _expand(node: ir.Node) -> ir.Value | None:
    source = node.inputs[0]
    assert source is not None
    target = _integers(node.inputs[1])
    if target is not None and source.shape is not None and len(target) <= len(source.shape):
        dims = list(source.shape)[len(source.shape) - len(target) :]
        if all(size in (1, dim) for size, dim in zip(target, dims, strict=True)):
            return source
    return None


def _neutral(node: ir.Node) -> ir.Value | None:
    """The operand next to a constant that changes nothing."""
    nothing = 1 if node.op_type in ("Mul", "Div", "Pow") else 0
    for place in (1,) if node.op_type in ("Div", "Pow", "Sub") else (0, 1):
        array, other = constant(node.inputs[place]), node.inputs[1 - place]
        if array is not None and other is not None and (array == nothing).all() and _same_shape(other, node.outputs[0]):
            return other
    return None


def _where(node: ir.Node) -> ir.Value | None:
    condition = constant(node.inputs[0])
    if condition is None or (condition.any() and not condition.all()):
        return None
    chosen = node.inputs[1 if condition.all() else 2]
    return chosen if chosen is not None and _same_shape(chosen, node.outputs[0]) else None


def _pad(node: ir.Node) -> ir.Value | None:
    pads = _integers(node.inputs[1])
    return node.inputs[0] if pads is not None and not any(pads) else None


def _reduce(node: ir.Node) -> ir.Value | None:
    axes = _reduced_ones(node)
    return node.inputs[0] if axes is not None and node.attributes.get_int("keepdims", 1) else None


def _reduced_ones(node: ir.Node) -> list[int] | None:
    """The axes that a reduction goes over, if there are some and all of them are known to be of size 1."""
    source = node.inputs[0]
    axes = _integers(node.inputs[1]) if len(node.inputs) > 1 else None
    if not axes or source is None or source.shape is None:
        return None
    return axes if all(source.shape[axis] == 1 for axis in axes) else None


def _reduce_to_squeeze(node: ir.Node) -> bool:
    if _reduced_ones(node) is None:
        return False
    node.op_type = "Squeeze"
    node.attributes.clear()
    return True


def _single_input(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


def _single_output(node: ir.Node) -> ir.Value | None:
    return node.inputs[0] if len(node.outputs) == 1 else None


def _merge_transposes(node: ir.Node) -> bool:
    before = _producer(node, "Transpose")
    if before is None:
        return False
    first, second = _permutation(before), _permutation(node)
    if first is None or second is None:
        return False
    node.replace_input_with(0, before.inputs[0])
    node.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in second])
    return True


def _transpose_earlier(node: ir.Node) -> bool:
    before = _producer(node, *_KEEPING_PLACES)
    permutation = _permutation(node)
    if before is None or permutation is None:
        return False
    result, graph = before.outputs[0], node.graph
    behind = result.consumers()
    if result.is_graph_output() or not all(
        is_op(user, "Transpose") and _permutation(user) == permutation for user in behind
    ):
        return False
    assert isinstance(graph, ir.Graph)
    transpose = ir.node("Transpose", [before.inputs[0]], {"perm": permutation})
    transpose.outputs[0].type, transpose.outputs[0].shape = result.type, node.outputs[0].shape
    graph.insert_before(before, transpose)
    before.replace_input_with(0, transpose.outputs[0])
    if before.op_type.endswith("Softmax"):
        axis = permutation.index(before.attributes.get_int("axis", -1) % len(permutation))
        before.attributes["axis"] = ir.AttrInt64("axis", axis)
    result.shape = node.outputs[0].shape
    for user in behind:
        replace_node(user, [result])
    return True


def _add_without_negative(node: ir.Node) -> bool:
    """a - (-b) as a + b, and a + (-b) as a - b."""
    for place in (1,) if node.op_type == "Sub" else (1, 0):
        added = node.inputs[place]
        negative = None if added is None else added.producer()
        if is_op(negative, "Neg"):
            operands = [node.inputs[1 - place], negative.inputs[0]]
            for number, operand in enumerate(operands):
                node.replace_input_with(number, operand)
            node.op_type = "Add" if node.op_type == "Sub" else "Sub"
            return True
    return False


def _add_negative_vector(node: ir.Node, names: FreshNames) -> bool:
    vector, subtracted, graph = constant(node.inputs[1]), node.inputs[1], node.graph
    if vector is None or subtracted is None or vector.size < 2 or vector.dtype.kind != "f":
        return False
    assert isinstance(graph, ir.Graph)
    negative = add_constant(graph, ir.tensor(-vector), names.new(f"{subtracted.name}_negative"))
    node.replace_input_with(1, negative)
    node.op_type = "Add"
    return True


def _merge_reshapes(node: ir.Node) -> bool:
    """The first Reshape only matters to the second where that copies a size by 0."""
    before = _producer(node, "Reshape")
    if before is None:
        return False
    target = _integers(node.inputs[1])
    allow_zero = node.attributes.get("allowzero")
    if target is None or (0 in target and (allow_zero is None or not allow_zero.as_int())):
        return False
    node.replace_input_with(0, before.inputs[0])
    return True


_KEEPING_PLACES = ("Exp", "LogSoftmax", "Relu", "Sigmoid", "Softmax", "Softplus", "Tanh")
_REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")
_RULES: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Add": _neutral,
    "Cast": _cast,
    "Concat": _single_input,
    "Div": _neutral,
    "Dropout": _dropout,
    "Expand": _expand,
    "Identity": _input,
    "Max": _single_input,
    "Min": _single_input,
    "Neg": lambda node: before.inputs[0] if (before := _producer(node, "Neg")) is not None else None,
    "Mul": _neutral,
    "Pad": _pad,
    "Pow": _neutral,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _single_output,
    "Squeeze": _squeeze,
    "Sub": _neutral,
    "Sum": _single_input,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
_MERGES: dict[str, Callable[[ir.Node], bool]] = {
    "Add": _add_without_negative,
    "Reshape": _merge_reshapes,
    "Sub": _add_without_negative,
    "Transpose": lambda node: _merge_transposes(node) or _transpose_earlier(node),
    **dict.fromkeys(_REDUCTIONS, _reduce_to_squeeze),
}
_REWRITES: dict[str, Callable[[ir.Node, FreshNames], bool]] = {"Einsum": multiply_first, "Sub": _add_negative_vector}
"""Rules that make values with names of their own."""
