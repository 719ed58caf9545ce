"""Output shapes over named sizes, node by node, where ONNX's inference gives up or invents a new name.

ONNX knows sizes as numbers or names, not as expressions: ``batch * seq`` is beyond it. The few operators whose output
sizes are arithmetic have rules here; for all others its own rule is asked again, with the now better known inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import sympy

from moec.passes.graph.edits import constant
from moec.passes.shapes import bodies
from moec.passes.shapes.symbolic import Dims, Names, SymbolicValues, is_named, shape_of, to_shape


def annotate(node: ir.Node, values: SymbolicValues, names: Names) -> bool:
    """Give the outputs shapes with named sizes where they lack one; return whether any got one."""
    if node.domain != "" or all(is_named(output) for output in node.outputs):
        return False
    if node.op_type in bodies.OPERATORS:
        return bodies.set_shapes(node, bodies.BodyShapes(names, annotate).outputs_of(node, values))
    output = node.outputs[0]
    rule = _RULES.get(node.op_type)
    dims = rule(node, values) if rule is not None and not is_named(output) else None
    if dims is not None:
        output.shape = to_shape(dims)
    elif node.op_type == "NonZero" and node.inputs[0] is not None and node.inputs[0].shape is not None:
        output.shape = to_shape([sympy.Integer(len(node.inputs[0].shape)), names.new()])
    elif node.op_type == "TopK" and (chosen := _top_k(node, values)) is not None:
        node.outputs[0].shape, node.outputs[1].shape = to_shape(chosen), to_shape(chosen)
    else:
        return _ask_onnx(node)
    return True


def broadcast(*shapes: list[Any]) -> Dims | None:
    """The broadcast shape; None when which of two sizes is 1 is not known."""
    rank = max(len(shape) for shape in shapes)
    result: Dims = [sympy.Integer(1)] * rank
    for shape in shapes:
        for axis, dim in enumerate(shape, start=rank - len(shape)):
            dim = sympy.sympify(dim)
            if result[axis] == 1:
                result[axis] = dim
            elif dim not in (1, result[axis]):
                # A number other than 1 beats a name: the name must turn out as that number or as 1.
                if result[axis].is_Integer == dim.is_Integer:
                    return None
                result[axis] = dim if dim.is_Integer else result[axis]
    return result


def reshaped(source: Dims, target: list[Any], *, allow_zero: bool) -> Dims | None:
    """The shape of a Reshape of ``source``; None if the size for -1 may not be an integer."""
    if any(item == 0 and position >= len(source) for position, item in enumerate(target)) and not allow_zero:
        return None
    dims = [
        source[position] if item == 0 and not allow_zero else sympy.sympify(item)
        for position, item in enumerate(target)
    ]
    if -1 not in dims:
        return dims
    others = sympy.prod(dim for dim in dims if dim != -1)
    if others == 0:
        return None
    missing = sympy.cancel(sympy.prod(source) / others)
    return [missing if dim == -1 else dim for dim in dims] if missing.is_integer else None


def allows_zero(node: ir.Node) -> bool:
    attribute = node.attributes.get("allowzero")
    return attribute is not None and bool(attribute.as_int())


def _input_dims(node: ir.Node, position: int = 0) -> Dims | None:
    value = node.inputs[position]
    return None if value is None else shape_of(value)


def _target(node: ir.Node, values: SymbolicValues, position: int) -> list[Any] | None:
    target = values.of(node.inputs[position])
    return None if target is None or target.ndim != 1 else list(target)


def _reshape(node: ir.Node, values: SymbolicValues) -> Dims | None:
    source, target = _input_dims(node), _target(node, values, 1)
    if source is None or target is None:
        return None
    return reshaped(source, target, allow_zero=allows_zero(node))


def _expand(node: ir.Node, values: SymbolicValues) -> Dims | None:
    source, target = _input_dims(node), _target(node, values, 1)
    return None if source is None or target is None else broadcast(source, target)


def _constant_of_shape(node: ir.Node, values: SymbolicValues) -> Dims | None:
    return _target(node, values, 0)


def _range(node: ir.Node, values: SymbolicValues) -> Dims | None:
    bounds = [values.of(value) for value in node.inputs]
    if any(bound is None for bound in bounds):
        return None
    start, limit, delta = (sympy.sympify(bound.ravel()[0]) for bound in bounds)  # type: ignore[union-attr]
    length = sympy.expand(limit - start)
    return [length] if delta == 1 and length.is_nonnegative else None


def _slice(node: ir.Node, values: SymbolicValues) -> Dims | None:
    dims = _input_dims(node)
    bounds = [values.of(value) for value in node.inputs[1:]]
    if dims is None or len(bounds) < 3 or any(bound is None for bound in bounds):
        return None
    starts, ends, axes = (list(bound.ravel()) for bound in bounds[:3])  # type: ignore[union-attr]
    steps = list(bounds[3].ravel()) if len(bounds) > 3 else [1] * len(starts)  # type: ignore[union-attr]
    if len({len(starts), len(ends), len(axes), len(steps)}) > 1 or not _are_axes(axes, dims):
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = _sliced(dims[axis], sympy.sympify(start), sympy.sympify(end)) if step == 1 else None
        if length is None:
            return None
        dims[axis] = length
    return dims


def _sliced(dim: sympy.Expr, start: sympy.Expr, end: sympy.Expr) -> sympy.Expr | None:
    if end.is_negative:
        end = dim + end
    if start.is_negative or dim + start == 0:  # minus the whole length is the beginning, also of nothing
        start = dim + start
    if end.is_Integer and end >= np.iinfo(np.int32).max:
        end = dim
    if not start.is_nonnegative or not end.is_nonnegative:
        return None
    end = sympy.Min(end, dim)
    length = sympy.expand(end - start)
    return length if length.is_nonnegative else None


def _flatten(node: ir.Node, values: SymbolicValues) -> Dims | None:
    dims = _input_dims(node)
    if dims is None:
        return None
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None else attribute.as_int()
    axis = axis + len(dims) if axis < 0 else axis
    return [sympy.prod(dims[:axis]), sympy.prod(dims[axis:])]


def _concat(node: ir.Node, values: SymbolicValues) -> Dims | None:
    shapes = [_input_dims(node, position) for position in range(len(node.inputs))]
    if any(shape is None for shape in shapes):
        return None
    axis = node.attributes["axis"].as_int()
    result = list(shapes[0])  # type: ignore[arg-type]
    result[axis] = sympy.expand(sum(shape[axis] for shape in shapes))  # type: ignore[index]
    return result


def _pad(node: ir.Node, values: SymbolicValues) -> Dims | None:
    dims, pads = _input_dims(node), _target(node, values, 1)
    operand = node.inputs[3] if len(node.inputs) > 3 else None
    axes = None if operand is None else _target(node, values, 3)
    if dims is None or pads is None or (operand is not None and axes is None):
        return None
    chosen = range(len(dims)) if axes is None else [int(axis) for axis in axes]
    if len(pads) != 2 * len(chosen) or not _are_axes(chosen, dims):
        return None
    for number, axis in enumerate(chosen):
        dims[axis] = sympy.expand(dims[axis] + pads[number] + pads[number + len(chosen)])
    return dims


def _are_axes(axes: Sequence[Any], dims: Sequence[Any]) -> bool:
    """Whether a value with these sizes has the axes; a file may name others."""
    return all(not hasattr(axis, "free_symbols") or axis.is_Integer for axis in axes) and all(
        -len(dims) <= int(axis) < len(dims) for axis in axes
    )


def _convolution(node: ir.Node, values: SymbolicValues) -> Dims | None:
    """Sizes after a convolution of step 1 with given padding; others, which divide, are left to ONNX's rule."""
    dims, weights = _input_dims(node), _input_dims(node, 1)
    if dims is None or weights is None or len(dims) != len(weights):
        return None
    attributes, count = node.attributes, len(dims) - 2
    steps, pads = attributes.get_ints("strides", [1] * count), attributes.get_ints("pads", [0] * 2 * count)
    if attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or [*steps] != [1] * count or len(pads) != 2 * count:
        return None
    padded = [size + pads[axis] + pads[axis + count] for axis, size in enumerate(dims[2:])]
    apart = attributes.get_ints("dilations", [1] * count)
    lost = [distance * (size - 1) for distance, size in zip(apart, weights[2:], strict=True)]
    return [dims[0], weights[0], *(size - less for size, less in zip(padded, lost, strict=True))]


def _tile(node: ir.Node, values: SymbolicValues) -> Dims | None:
    dims, repeats = _input_dims(node), _target(node, values, 1)
    return (
        None
        if dims is None or repeats is None or len(dims) != len(repeats)
        else [a * b for a, b in zip(dims, repeats, strict=True)]
    )


def _top_k(node: ir.Node, values: SymbolicValues) -> Dims | None:
    dims, count = _input_dims(node), _target(node, values, 1)
    if dims is None or count is None:
        return None
    attribute = node.attributes.get("axis")
    dims[-1 if attribute is None else attribute.as_int()] = sympy.sympify(count[0])
    return dims


def _elementwise(node: ir.Node, values: SymbolicValues) -> Dims | None:
    shapes = [_input_dims(node, position) for position in range(len(node.inputs))]
    return None if any(shape is None for shape in shapes) else broadcast(*shapes)  # type: ignore[arg-type]


_ELEMENTWISE = (
    "Add And BitwiseAnd BitwiseOr Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub"
)
_RULES: dict[str, Callable[[ir.Node, SymbolicValues], Dims | None]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _convolution,
    "Expand": _expand,
    "Flatten": _flatten,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Tile": _tile,
    "Where": _elementwise,
    **{op_type: _elementwise for op_type in _ELEMENTWISE.split()},
}


_REFUSED = (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError)
"""Errors of ONNX's own inference for nodes that are not of its operators, or contradict them."""


def _ask_onnx(node: ir.Node) -> bool:
    """Ask ONNX's own rule for this one node; a shape with sizes that it does not know replaces only an unknown rank."""
    inputs = [value for value in node.inputs if value is not None]
    if any(value.shape is None or value.type is None for value in inputs) or any(not o.name for o in node.outputs):
        return False
    types: dict[Any, Any] = {}
    for value in inputs:
        types[value.name] = ir.serde.serialize_type(value.type)  # type: ignore[arg-type]
        ir.serde.serialize_shape_into(types[value.name], value.shape)  # type: ignore[arg-type]
    data: dict[Any, Any] = {}
    for value in inputs:
        array = constant(value, 64)
        if array is not None:
            data[value.name] = ir.serde.serialize_tensor(ir.tensor(array, name=value.name))
    try:
        schema = onnx.defs.get_schema(node.op_type, node.graph.opset_imports[""], "")  # type: ignore[union-attr]
        inferred = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except _REFUSED:
        return False
    changed = False
    for output in node.outputs:
        shape = ir.serde.deserialize_type_proto_for_shape(inferred[output.name]) if output.name in inferred else None
        if shape is None or is_named(output):
            continue
        before, output.shape = output.shape, shape
        if is_named(output):
            changed = True
        elif before is not None:
            output.shape = before
    return changed
