"""Elementwise operators: one scalar expression each (:mod:`moec.targets.tvm.kernels.scalar_functions`), broadcast as in
numpy, or a result at compile time where all operands are known."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import tirx

from moec.common.errors import UnsupportedError
from moec.targets.tvm.kernels.arithmetic import converted, is_unsigned
from moec.targets.tvm.kernels.comparisons import is_nonzero, maximum, minimum
from moec.targets.tvm.kernels.scalar_functions import (
    BINARY,
    UNARY,
    Scalar,
    c_modulo,
    floor_modulo,
    gelu,
    gelu_tanh,
    in_float32,
    like,
    modulo,
    swish,
)
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.broadcasting import broadcast_elements, emit_elementwise
from moec.targets.tvm.lowering.constants import dtype_name
from moec.targets.tvm.lowering.lowering import Converter, Lowering
from moec.targets.tvm.onnx.shape import full
from moec.targets.tvm.sizes.symbolic import INTEGER_OPERATORS, MAXIMUM_KNOWN_ELEMENTS, StaticValue, combined


def _unary(name: str) -> Converter:
    def convert(lowering: Lowering, node: ir.Node) -> Any:
        value = required_input(node, 0)
        static = lowering.static(value)
        if static is not None and name == "Identity":
            return static
        if static is not None and name in ("Neg", "Not", "Abs") and static.numbers is not None:
            numbers = {"Neg": np.negative, "Not": np.logical_not, "Abs": np.abs}[name](static.numbers)
            return StaticValue.of(numbers, static.dtype)
        return emit_elementwise(lowering, [value], UNARY[name], name.lower())

    return convert


def _unary_with_attributes(name: str, scalar: Callable[[ir.Node], Scalar]) -> Converter:
    def convert(lowering: Lowering, node: ir.Node) -> Any:
        return emit_elementwise(lowering, [required_input(node, 0)], in_float32(scalar(node)), name)

    return convert


def _gelu_of(node: ir.Node) -> Scalar:
    return gelu_tanh if attribute(node, "approximate", "none") == "tanh" else gelu


def _leaky_relu_of(node: ir.Node) -> Scalar:
    alpha = attribute(node, "alpha", 0.01)
    return lambda x: tirx.Select(x < like(0, x), x * like(alpha, x), x)


def _elu_of(node: ir.Node) -> Scalar:
    alpha = attribute(node, "alpha", 1.0)
    return lambda x: tirx.Select(x < like(0, x), like(alpha, x) * (tirx.exp(x) - like(1, x)), x)


def _hard_sigmoid_of(node: ir.Node) -> Scalar:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return lambda x: maximum(minimum(x * like(alpha, x) + like(beta, x), like(1, x)), like(0, x))


def _variadic(name: str) -> Converter:
    scalar = BINARY[name]

    def convert(lowering: Lowering, node: ir.Node) -> Any:
        values = [required_input(node, position) for position in range(len(node.inputs))]
        folded = _fold(lowering, name, values)
        if folded is not None:
            return folded
        return emit_elementwise(lowering, values, lambda *elements: functools.reduce(scalar, elements), name.lower())

    return convert


def _prelu(lowering: Lowering, node: ir.Node) -> Any:
    """The slope is broadcast to x, never x to the slope."""
    x, slope = (lowering.tensor(required_input(node, position)) for position in (0, 1))
    rank, slope_rank = len(x.ty.shape), len(slope.ty.shape)
    if slope_rank > rank:
        raise UnsupportedError(f"the slope has {slope_rank} axes and x has {rank}; expected one that broadcasts to x")

    def scalar(element: tirx.Expr, factor: tirx.Expr) -> tirx.Expr:
        return tirx.Select(element < like(0, element), element * factor, element)

    return broadcast_elements(lowering, [x, slope], scalar, "prelu", x.ty.shape)


def _fold(lowering: Lowering, name: str, values: Sequence[ir.Value]) -> StaticValue | None:
    """The result at compile time, if every operand is known and the operator can be decided on symbols."""
    operands = [operand for value in values if (operand := lowering.static(value)) is not None]
    if not operands or len(operands) < len(values):
        return None
    arrays = [operand.elements for operand in operands]
    if math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) > MAXIMUM_KNOWN_ELEMENTS:
        return None
    if name in INTEGER_OPERATORS and operands[0].dtype != "bool":
        combine = functools.partial(combined, lowering.sizes, name, operands[0].dtype)
        results = _array(functools.reduce(np.frompyfunc(combine, 2, 1), arrays))
        return None if any(result is None for result in results.flat) else StaticValue.of(results, operands[0].dtype)
    decide = _decisions(lowering).get(name)
    if decide is None or len(arrays) != 2:
        return None
    decided = _array(np.frompyfunc(decide, 2, 1)(*arrays))
    return None if any(answer is None for answer in decided.flat) else StaticValue.of(decided, "bool")


def _array(elements: Any) -> np.ndarray:
    return elements if isinstance(elements, np.ndarray) else StaticValue.of(elements).elements


def _decisions(lowering: Lowering) -> dict[str, Callable[[Any, Any], bool | None]]:
    equal, less = lowering.sizes.equal, lowering.sizes.less

    def negated(answer: bool | None) -> bool | None:
        return None if answer is None else not answer

    return {
        "Equal": equal,
        "Less": less,
        "Greater": lambda a, b: less(b, a),
        "LessOrEqual": lambda a, b: negated(less(b, a)),
        "GreaterOrEqual": lambda a, b: negated(less(a, b)),
        "And": lambda a, b: a and b if isinstance(a, bool) and isinstance(b, bool) else None,
        "Or": lambda a, b: a or b if isinstance(a, bool) and isinstance(b, bool) else None,
    }


def _convert_mod(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, 0), required_input(node, 1)]
    if attribute(node, "fmod", 0):
        return emit_elementwise(lowering, values, c_modulo, "mod")
    if "float" in lowering.dtype(values[0]):
        return emit_elementwise(lowering, values, floor_modulo, "mod")
    return _fold(lowering, "Mod", values) or emit_elementwise(lowering, values, modulo, "mod")


def _convert_mean(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(len(node.inputs))]

    def scalar(*elements: tirx.Expr) -> tirx.Expr:
        return functools.reduce(lambda a, b: a + b, elements) / like(len(elements), elements[0])

    return emit_elementwise(lowering, values, scalar, "mean")


def _convert_where(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(3)]
    operands = [operand for value in values if (operand := lowering.static(value)) is not None]
    if len(operands) == len(values) and operands[0].numbers is not None:
        chosen = np.frompyfunc(lambda condition, left, right: left if condition else right, 3, 1)
        return StaticValue.of(_array(chosen(*(operand.elements for operand in operands))), operands[1].dtype)
    return emit_elementwise(lowering, values, tirx.Select, "where")


def _convert_clip(lowering: Lowering, node: ir.Node) -> Any:
    low, high = optional_input(node, 1), optional_input(node, 2)
    values = [required_input(node, 0), *(bound for bound in (low, high) if bound is not None)]

    def scalar(x: tirx.Expr, *bounds: tirx.Expr) -> tirx.Expr:
        remaining = list(bounds)
        if low is not None:
            x = maximum(x, remaining.pop(0))
        return minimum(x, remaining.pop(0)) if high is not None else x

    return emit_elementwise(lowering, values, scalar, "clip")


def _convert_cast(lowering: Lowering, node: ir.Node) -> Any:
    if node.op_type == "CastLike":
        target = lowering.dtype(required_input(node, 1))
    else:
        target = dtype_name(ir.DataType(attribute(node, "to")))
    value = required_input(node, 0)
    static = lowering.static(value)
    if static is not None and "int" in target and (numbers := static.numbers) is not None:
        return StaticValue.of(numbers.astype(target), target)
    if static is not None and target in ("int64", "int32"):  # which hold sizes
        return StaticValue(static.elements, target)
    if lowering.dtype(value) == target:
        return lowering.tensor(value)
    if target == "bool":
        return emit_elementwise(lowering, [value], is_nonzero, "cast")
    return emit_elementwise(lowering, [value], functools.partial(converted, target=target), "cast")


def _convert_bit_shift(lowering: Lowering, node: ir.Node) -> Any:
    """By no bits, by all, or by more than the type has (opset 28): 0 is shifted in, or the sign to the right."""
    left = attribute(node, "direction") == "LEFT"

    def scalar(x: tirx.Expr, by: tirx.Expr) -> tirx.Expr:
        bits = int(re.sub(r"\D", "", str(x.ty.dtype)))
        count = by.astype("int64")
        outside = count >= bits if is_unsigned(by) and bits < 64 else tirx.any(count < 0, count >= bits)
        kept = tirx.Select(outside, like(0, by), by)
        if left:
            return tirx.Select(outside, like(0, x), x << kept)
        beyond = like(0, x) if is_unsigned(x) else tirx.Select(x < like(0, x), like(-1, x), like(0, x))
        return tirx.Select(outside, beyond, x >> kept)

    return emit_elementwise(lowering, [required_input(node, 0), required_input(node, 1)], scalar, "bit_shift")


def _convert_bit_cast(lowering: Lowering, node: ir.Node) -> Any:
    """The same bits as another type of the same width."""
    target = dtype_name(ir.DataType(attribute(node, "to")))
    source = lowering.dtype(required_input(node, 0))
    if "bool" in (target, source):
        target_byte = "uint8" if target == "bool" else target
        return emit_elementwise(
            lowering,
            [required_input(node, 0)],
            lambda x: x.astype("uint8").astype(target_byte).astype(target),
            "bit_cast",
        )
    return emit_elementwise(lowering, [required_input(node, 0)], lambda x: tirx.reinterpret(target, x), "bit_cast")


def _convert_isinf(lowering: Lowering, node: ir.Node) -> Any:
    positive, negative = attribute(node, "detect_positive", 1), attribute(node, "detect_negative", 1)

    def scalar(x: tirx.Expr) -> tirx.Expr:
        x = x if str(x.ty.dtype) in ("float32", "float64") else x.astype("float32")
        above = tirx.EQ(x, like(math.inf, x)) if positive else tirx.const(False, "bool")
        below = tirx.EQ(x, like(-math.inf, x)) if negative else tirx.const(False, "bool")
        return tirx.Or(above, below)

    return emit_elementwise(lowering, [required_input(node, 0)], scalar, "isinf")


def _convert_dropout(lowering: Lowering, node: ir.Node) -> Any:
    training = optional_input(node, 2)
    if training is not None:
        in_training = lowering.constant(training)
        if in_training is None or in_training.any():
            actual = "training_mode is " + (
                "true" if in_training is not None else f"set at run time by {training.name!r}"
            )
            raise UnsupportedError(f"{actual}; expected an inference graph: export the model in evaluation mode")
    value = required_input(node, 0)
    if not any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return lowering.tensor(value)
    return [lowering.tensor(value), full(lowering, lowering.dimensions(value), True, "bool")]


CONVERTERS: dict[str, Converter] = {
    **{name: _unary(name) for name in UNARY},
    **{name: _variadic(name) for name in BINARY},
    "PRelu": _prelu,
    "Sum": lambda lowering, node: _variadic("Add")(lowering, node),
    "Mean": _convert_mean,
    "Mod": _convert_mod,
    "Where": _convert_where,
    "Clip": _convert_clip,
    "Cast": _convert_cast,
    "CastLike": _convert_cast,
    "BitCast": _convert_bit_cast,
    "BitShift": _convert_bit_shift,
    "IsInf": _convert_isinf,
    "Dropout": _convert_dropout,
    "Gelu": _unary_with_attributes("gelu", _gelu_of),
    "LeakyRelu": _unary_with_attributes("leaky_relu", _leaky_relu_of),
    "Elu": _unary_with_attributes("elu", _elu_of),
    "HardSigmoid": _unary_with_attributes("hard_sigmoid", _hard_sigmoid_of),
    "Swish": _unary_with_attributes("swish", lambda node: lambda x: swish(x, attribute(node, "alpha", 1.0))),
}
