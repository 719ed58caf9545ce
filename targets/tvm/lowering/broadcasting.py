"""Kernels over operands that broadcast as in numpy, with symbolic sizes.

Where two sizes are not known to be equal, one may be 1 at run time: the result then has the other size, and the element
at 0 stands for all. Any other difference is an error, raised before an element is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from moec.common.errors import UnsupportedError

if TYPE_CHECKING:
    from moec.targets.tvm.kernels.te_kernels import Requirement
    from moec.targets.tvm.lowering.function_builder import FunctionBuilder
    from moec.targets.tvm.lowering.graph_values import GraphValues
    from moec.targets.tvm.sizes.symbolic import Sizes


def broadcast_dimension(sizes: Sizes, left: Any, right: Any) -> Any:
    """The size that both broadcast to. Raises UnsupportedError for two numbers that differ and of which none is 1."""
    left, right = sizes.simplify(left), sizes.simplify(right)
    if isinstance(left, int) and isinstance(right, int) and left != right and 1 not in (left, right):
        raise UnsupportedError(f"sizes {left} and {right} do not broadcast; expected equal ones, or a 1")
    if isinstance(left, int) and left == 1:
        return right
    if isinstance(right, int) and right == 1:
        return left
    if isinstance(left, int) or _is_at_most_one_of(left, right):
        return right if not isinstance(left, int) else left
    if isinstance(right, int) or _is_at_most_one_of(right, left):
        return right if isinstance(right, int) else left
    if sizes.equal(left, right):
        return right if isinstance(right, tirx.Var) and not isinstance(left, tirx.Var) else left
    return sizes.simplify(tirx.Select(sizes.same(left, 1), right, left))


def _is_at_most_one_of(size: Any, whole: Any) -> bool:
    """Whether the size is ``min(whole, 1)``, the size of a slice of one row: where it is 0, ``whole`` is 0 too."""
    if not isinstance(size, tirx.Min):
        return False
    pair = [size.a, size.b]
    return any(isinstance(number, tirx.IntImm) and int(number) == 1 for number in pair) and any(
        number.same_as(whole) for number in pair
    )


def broadcast_shape(sizes: Sizes, shapes: Sequence[Sequence[Any]]) -> list[Any]:
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Any] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            result[axis] = broadcast_dimension(sizes, result[axis], size)
    return result


def requirements_of(
    builder: FunctionBuilder, shapes: Sequence[Sequence[Any]], target: Sequence[Any]
) -> list[Requirement]:
    """Run-time checks that each size equals that of ``target`` or 1; none where this is known at compile time.

    Raises UnsupportedError for more axes than the target has, and where sizes never fit."""
    for shape in shapes:
        if len(shape) > len(target):
            raise UnsupportedError(f"sizes {list(shape)} do not broadcast to {list(target)}; expected no more axes")
    result: list[Requirement] = []
    for axis, expected in enumerate(target):
        sizes = [shape[axis - len(target)] for shape in shapes if len(target) - axis <= len(shape)]
        actual = f"sizes {' and '.join(map(str, sizes))} on axis {axis} do not broadcast"
        for size in sizes:
            if not _is_one(size) and not builder.sizes.equal(size, expected) and not _is_at_most_one_of(size, expected):
                fits = _any(builder.sizes.same(size, expected), builder.sizes.same(size, 1))
                result += builder.require(fits, actual, "equal ones, or a 1")
    return result


def _any(left: Any, right: Any) -> Any:
    if isinstance(left, bool):
        return left or right
    return right or left if isinstance(right, bool) else tirx.any(left, right)


def load(
    sizes: Sizes, tensor: te.Tensor, shape: Sequence[Any], target: Sequence[Any], indices: Sequence[tirx.Expr]
) -> tirx.Expr:
    """The element of a broadcast operand at the indices of a result of the ``target`` sizes."""
    skipped = len(indices) - len(shape)
    places: list[Any] = []
    for size, result_size, index in zip(shape, target[skipped:], indices[skipped:], strict=True):
        alone = sizes.same(size, 1)
        if sizes.equal(size, result_size) or alone is False:
            alone = _is_one(size)
        zero = tirx.const(0, index.ty.dtype)
        places.append((zero if alone else index) if isinstance(alone, bool) else tirx.if_then_else(alone, zero, index))
    return tensor(*places)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def immediate(lowering: GraphValues, value: ir.Value) -> tirx.Expr | None:
    """A constant of one element as a number in the code; None for any other value, and for large integers.

    TVM's simplifier computes with such numbers and does not wrap around as processors do: an integer is taken only if
    it fits in half of its type's bits."""
    if not lowering.is_constant(value) or any(size != 1 for size in lowering.dimensions(value)):
        return None
    dtype = lowering.dtype(value)
    number = np.asarray(lowering.constant(value)).reshape(()).item()
    if isinstance(number, int) and abs(number) >> 4 * np.dtype(dtype).itemsize:
        return None
    return tirx.const(number, dtype)


def emit_elementwise(
    lowering: GraphValues, values: Sequence[ir.Value], function: Callable[..., tirx.Expr], name: str
) -> relax.Var:
    """Emit one kernel that applies ``function`` to the operands' elements; one-element constants become immediates."""
    immediates = [immediate(lowering, value) for value in values]
    if all(number is not None for number in immediates):
        immediates[0] = None
    target = broadcast_shape(lowering.sizes, [lowering.dimensions(value) for value in values])
    operands = [lowering.tensor(value) for value, number in zip(values, immediates, strict=True) if number is None]

    def apply(*loaded: tirx.Expr) -> tirx.Expr:
        elements = iter(loaded)
        return function(*(next(elements) if number is None else number for number in immediates))

    return broadcast_elements(lowering, operands, apply, name, target)


def broadcast_elements(
    builder: FunctionBuilder,
    tensors: Sequence[relax.Expr],
    function: Callable[..., tirx.Expr],
    name: str,
    target: Sequence[Any] | None = None,
) -> relax.Var:
    """Emit one kernel that applies ``function`` to the elements of tensors, all broadcast to the ``target`` sizes."""
    sizes = builder.sizes
    shapes = [[sizes.simplify(size) for size in tensor.ty.shape] for tensor in tensors]
    result = broadcast_shape(sizes, shapes) if target is None else list(target)
    requirements = requirements_of(builder, shapes, result)

    def build(*operands: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            pairs = zip(operands, shapes, strict=True)
            return function(*(load(sizes, operand, own, result, indices) for operand, own in pairs))

        return te.compute([sizes.expression(size) for size in result], element, name=name)

    return builder.compute(build, list(tensors), name, requirements)[0]


def broadcast_to(builder: FunctionBuilder, tensor: relax.Expr, target: Sequence[Any]) -> relax.Expr:
    """The tensor broadcast to the ``target`` sizes; the tensor itself where it has them."""
    own = [builder.sizes.simplify(size) for size in tensor.ty.shape]
    target = [builder.sizes.simplify(size) for size in target]
    if len(own) == len(target) and all(map(builder.sizes.equal, own, target)):
        return tensor
    return broadcast_elements(builder, [tensor], lambda element: element, "expand", target)
