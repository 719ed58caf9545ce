"""Elementwise operators: one scalar expression each, broadcast as in numpy."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import tirx

from moec.errors import UnsupportedError
from moec.targets.tvm.arithmetic import (
    difference,
    divisor_of_remainder,
    is_float,
    is_unsigned,
    product,
    quotient,
    truncated_quotient,
)
from moec.targets.tvm.attributes import attribute, optional_input, required_input
from moec.targets.tvm.broadcasting import broadcast_elements, emit_elementwise
from moec.targets.tvm.comparisons import is_nan, is_nonzero, maximum, minimum, negated
from moec.targets.tvm.constants import dtype_name
from moec.targets.tvm.convert_shape import full
from moec.targets.tvm.lowering import Converter, Lowering
from moec.targets.tvm.symbolic import INTEGER_OPERATORS, MAXIMUM_KNOWN_ELEMENTS, Known, combined

Scalar = Callable[..., tirx.Expr]


def _like(number: float, element: tirx.Expr) -> tirx.Expr:
    return tirx.const(number, element.ty.dtype)


def in_float32(function: Scalar) -> Scalar:
    """Compute 16-bit floats in float32: mathematical functions have no 16-bit form."""

    @functools.wraps(function)
    def wrapped(*elements: tirx.Expr) -> tirx.Expr:
        dtype = str(elements[0].ty.dtype)
        if dtype not in ("float16", "bfloat16"):
            return function(*elements)
        return function(*(element.astype("float32") for element in elements)).astype(dtype)

    return wrapped


def in_float64(function: Scalar) -> Scalar:
    """Compute all floats in float64, for formulas in which digits of float32 would cancel."""

    @functools.wraps(function)
    def wrapped(*elements: tirx.Expr) -> tirx.Expr:
        dtype = str(elements[0].ty.dtype)
        return function(*(element.astype("float64") for element in elements)).astype(dtype)

    return wrapped


# Functions of one element


def _sigmoid(x: tirx.Expr) -> tirx.Expr:
    return _like(1, x) / (_like(1, x) + tirx.exp(-x))


def _softplus(x: tirx.Expr) -> tirx.Expr:
    small = tirx.exp(-tirx.abs(x)).astype("float64")  # 1 + small keeps all digits of small
    return tirx.log(_like(1, small) + small).astype(x.ty.dtype) + tirx.max(x, _like(0, x))


def _sign(x: tirx.Expr) -> tirx.Expr:
    zero = _like(0, x)
    signless = tirx.Select(tirx.EQ(x, zero), zero, x)  # NaN is left
    return tirx.Select(x > zero, _like(1, x), tirx.Select(x < zero, _like(0 if is_unsigned(x) else -1, x), signless))


def gelu(x: tirx.Expr) -> tirx.Expr:
    """The exact form, by erf."""
    return _like(0.5, x) * x * (_like(1, x) + tirx.erf(x * _like(math.sqrt(0.5), x)))


def gelu_tanh(x: tirx.Expr) -> tirx.Expr:
    """The tanh approximation (Hendrycks and Gimpel, arXiv 1606.08415)."""
    inner = _like(math.sqrt(2 / math.pi), x) * (x + _like(0.044715, x) * x * x * x)
    return _like(0.5, x) * x * (_like(1, x) + tirx.tanh(inner))


def swish(x: tirx.Expr, alpha: float) -> tirx.Expr:
    return x / (_like(1, x) + tirx.exp(-product(x, _like(alpha, x))))


def _asinh(x: tirx.Expr) -> tirx.Expr:
    size = tirx.abs(x)
    positive = tirx.log(size + tirx.sqrt(size * size + _like(1, x)))
    return tirx.Select(x < _like(0, x), -positive, positive)


def _round_half_even(x: tirx.Expr) -> tirx.Expr:
    return tirx.nearbyint(x)


UNARY: dict[str, Scalar] = {
    "Abs": lambda x: x if is_unsigned(x) else tirx.abs(x),
    "Neg": lambda x: -x,
    "Relu": lambda x: maximum(x, _like(0, x)),
    "Sign": _sign,
    "Not": negated,
    "BitwiseNot": lambda x: ~x,
    "Identity": lambda x: x,
    "IsNaN": is_nan,
    "Floor": in_float32(tirx.floor),
    "Ceil": in_float32(tirx.ceil),
    "Round": in_float32(_round_half_even),
    "Reciprocal": in_float32(lambda x: _like(1, x) / x),
    "Sqrt": in_float32(tirx.sqrt),
    "Exp": in_float32(tirx.exp),
    "Log": in_float32(tirx.log),
    "Sin": in_float32(tirx.sin),
    "Cos": in_float32(tirx.cos),
    "Tan": in_float32(tirx.tan),
    "Acos": in_float32(tirx.acos),
    "Asin": in_float32(tirx.asin),
    "Atan": in_float32(tirx.atan),
    "Sinh": in_float64(lambda x: _like(0.5, x) * (tirx.exp(x) - tirx.exp(-x))),
    "Cosh": in_float64(lambda x: _like(0.5, x) * (tirx.exp(x) + tirx.exp(-x))),
    "Asinh": in_float64(_asinh),
    "Acosh": in_float64(lambda x: tirx.log(x + tirx.sqrt(x - _like(1, x)) * tirx.sqrt(x + _like(1, x)))),
    "Atanh": in_float64(lambda x: _like(0.5, x) * tirx.log((_like(1, x) + x) / (_like(1, x) - x))),
    "Tanh": in_float32(tirx.tanh),
    "Erf": in_float32(tirx.erf),
    "Sigmoid": in_float32(_sigmoid),
    "Softplus": in_float32(_softplus),
    "Softsign": in_float32(lambda x: x / (_like(1, x) + tirx.abs(x))),
}


def _unary(name: str) -> Converter:
    def convert(lowering: Lowering, node: ir.Node) -> Any:
        value = required_input(node, 0)
        known = lowering.known(value)
        if known is not None and name == "Identity":
            return known
        if known is not None and name in ("Neg", "Not", "Abs") and known.numbers is not None:
            numbers = {"Neg": np.negative, "Not": np.logical_not, "Abs": np.abs}[name](known.numbers)
            return Known.of(numbers, known.dtype)
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
    return lambda x: tirx.Select(x < _like(0, x), x * _like(alpha, x), x)


def _elu_of(node: ir.Node) -> Scalar:
    alpha = attribute(node, "alpha", 1.0)
    return lambda x: tirx.Select(x < _like(0, x), _like(alpha, x) * (tirx.exp(x) - _like(1, x)), x)


def _hard_sigmoid_of(node: ir.Node) -> Scalar:
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    return lambda x: maximum(minimum(x * _like(alpha, x) + _like(beta, x), _like(1, x)), _like(0, x))


# Functions of two elements and more


def _divide(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    if is_float(left):
        return quotient(left, right)
    return truncated_quotient(left, right)


def _modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    return tirx.floormod(left, divisor_of_remainder(right))


def _c_modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    if is_float(left):
        # TVM has no fmod for processors; the quotient of two float32 is exact enough in float64.
        wide, divisor = left.astype("float64"), right.astype("float64")
        remainder = (wide - tirx.trunc(wide / divisor) * divisor).astype(left.ty.dtype)
        endless = tirx.all(tirx.abs(divisor) == _like(math.inf, divisor), tirx.abs(wide) < _like(math.inf, wide))
        return tirx.Select(endless, left, remainder)
    return tirx.truncmod(left, divisor_of_remainder(right))


def _floor_modulo(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    """The remainder of floats with the sign of the divisor."""
    remainder = _c_modulo(left, right)
    zero = _like(0, remainder)
    differs = tirx.any(tirx.all(remainder < zero, right > zero), tirx.all(remainder > zero, right < zero))
    return tirx.Select(differs, remainder + right, remainder)


def _root(base: tirx.Expr) -> tirx.Expr:
    """``base ** 0.5``, which is not its square root where that is -0 or -inf (IEEE 754-2019, 9.2.1)."""
    return tirx.Select(base == _like(-math.inf, base), _like(math.inf, base), tirx.abs(tirx.sqrt(base)))


def _power(base: tirx.Expr, exponent: tirx.Expr) -> tirx.Expr:
    dtype = str(base.ty.dtype)
    if isinstance(exponent, (tirx.FloatImm, tirx.IntImm)):
        number = float(exponent.value)
        if number in (1.0, 2.0, 3.0):
            return math.prod([base] * (int(number) - 1), start=base)
        if number == 0.5 and is_float(base):
            return in_float32(_root)(base)
    wide = "float64" if dtype in ("float64", "int64", "int32") else "float32"
    return tirx.pow(base.astype(wide), exponent.astype(wide)).astype(dtype)


def _comparison(compare: Callable[[Any, Any], Any]) -> Scalar:
    def scalar(left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
        if str(left.ty.dtype) == "bool":
            left, right = left.astype("int32"), right.astype("int32")
        return compare(left, right)

    return scalar


def _select(condition: tirx.Expr, left: tirx.Expr, right: tirx.Expr) -> tirx.Expr:
    return tirx.Select(condition, left, right)


BINARY: dict[str, Scalar] = {
    "Add": lambda a, b: a + b,
    "Sub": difference,
    "Mul": product,
    "Div": _divide,
    "Pow": _power,
    "Max": maximum,
    "Min": minimum,
    "And": lambda a, b: tirx.And(a, b),
    "Or": lambda a, b: tirx.Or(a, b),
    "Xor": _comparison(lambda a, b: tirx.NE(a, b)),
    "Equal": _comparison(lambda a, b: tirx.EQ(a, b)),
    "Less": _comparison(lambda a, b: tirx.LT(a, b)),
    "LessOrEqual": _comparison(lambda a, b: tirx.LE(a, b)),
    "Greater": _comparison(lambda a, b: tirx.GT(a, b)),
    "GreaterOrEqual": _comparison(lambda a, b: tirx.GE(a, b)),
    "BitwiseAnd": lambda a, b: a & b,
    "BitwiseOr": lambda a, b: a | b,
    "BitwiseXor": lambda a, b: a ^ b,
}


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
    rank, wanted = len(x.ty.shape), len(slope.ty.shape)
    if wanted > rank:
        raise UnsupportedError(f"the slope has {wanted} axes and x has {rank}; expected one that broadcasts to x")

    def scalar(element: tirx.Expr, factor: tirx.Expr) -> tirx.Expr:
        return tirx.Select(element < _like(0, element), element * factor, element)

    return broadcast_elements(lowering, [x, slope], scalar, "prelu", x.ty.shape)


def _fold(lowering: Lowering, name: str, values: Sequence[ir.Value]) -> Known | None:
    """The result at compile time, if every operand is known and the operator can be decided on symbols."""
    operands = [operand for value in values if (operand := lowering.known(value)) is not None]
    if not operands or len(operands) < len(values):
        return None
    arrays = [operand.elements for operand in operands]
    if math.prod(np.broadcast_shapes(*(array.shape for array in arrays))) > MAXIMUM_KNOWN_ELEMENTS:
        return None
    if name in INTEGER_OPERATORS and operands[0].dtype != "bool":
        combine = functools.partial(combined, lowering.sizes, name, operands[0].dtype)
        results = _array(functools.reduce(np.frompyfunc(combine, 2, 1), arrays))
        return None if any(result is None for result in results.flat) else Known.of(results, operands[0].dtype)
    decide = _decisions(lowering).get(name)
    if decide is None or len(arrays) != 2:
        return None
    decided = _array(np.frompyfunc(decide, 2, 1)(*arrays))
    return None if any(answer is None for answer in decided.flat) else Known.of(decided, "bool")


def _array(elements: Any) -> np.ndarray:
    return elements if isinstance(elements, np.ndarray) else Known.of(elements).elements


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
        return emit_elementwise(lowering, values, _c_modulo, "mod")
    if "float" in lowering.dtype(values[0]):
        return emit_elementwise(lowering, values, _floor_modulo, "mod")
    return _fold(lowering, "Mod", values) or emit_elementwise(lowering, values, _modulo, "mod")


def _convert_mean(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(len(node.inputs))]

    def scalar(*elements: tirx.Expr) -> tirx.Expr:
        return functools.reduce(lambda a, b: a + b, elements) / _like(len(elements), elements[0])

    return emit_elementwise(lowering, values, scalar, "mean")


def _convert_where(lowering: Lowering, node: ir.Node) -> Any:
    values = [required_input(node, position) for position in range(3)]
    operands = [operand for value in values if (operand := lowering.known(value)) is not None]
    if len(operands) == len(values) and operands[0].numbers is not None:
        chosen = np.frompyfunc(lambda condition, left, right: left if condition else right, 3, 1)
        return Known.of(_array(chosen(*(operand.elements for operand in operands))), operands[1].dtype)
    return emit_elementwise(lowering, values, _select, "where")


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
    known = lowering.known(value)
    if known is not None and "int" in target and (numbers := known.numbers) is not None:
        return Known.of(numbers.astype(target), target)
    if known is not None and target in ("int64", "int32"):  # which hold sizes
        return Known(known.elements, target)
    if lowering.dtype(value) == target:
        return lowering.tensor(value)
    if target == "bool":
        return emit_elementwise(lowering, [value], is_nonzero, "cast")
    return emit_elementwise(lowering, [value], lambda x: x.astype(target), "cast")


def _convert_bit_shift(lowering: Lowering, node: ir.Node) -> Any:
    """By no bits, by all, or by more than the type has (opset 28): 0 is shifted in, or the sign to the right."""
    left = attribute(node, "direction") == "LEFT"

    def scalar(x: tirx.Expr, by: tirx.Expr) -> tirx.Expr:
        bits = int(re.sub(r"\D", "", str(x.ty.dtype)))
        count = by.astype("int64")
        outside = count >= bits if is_unsigned(by) and bits < 64 else tirx.any(count < 0, count >= bits)
        kept = tirx.Select(outside, _like(0, by), by)
        if left:
            return tirx.Select(outside, _like(0, x), x << kept)
        beyond = _like(0, x) if is_unsigned(x) else tirx.Select(x < _like(0, x), _like(-1, x), _like(0, x))
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
        above = tirx.EQ(x, _like(math.inf, x)) if positive else tirx.const(False, "bool")
        below = tirx.EQ(x, _like(-math.inf, x)) if negative else tirx.const(False, "bool")
        return tirx.Or(above, below)

    return emit_elementwise(lowering, [required_input(node, 0)], scalar, "isinf")


def _convert_dropout(lowering: Lowering, node: ir.Node) -> Any:
    training = optional_input(node, 2)
    if training is not None:
        in_training = lowering.constant(training)
        if in_training is None or in_training.any():
            found = "training_mode is " + (
                "true" if in_training is not None else f"set at run time by {training.name!r}"
            )
            raise UnsupportedError(f"{found}; expected an inference graph: export the model in evaluation mode")
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
