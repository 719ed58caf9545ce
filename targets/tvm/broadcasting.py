"""Elementwise kernels over operands that broadcast as in numpy, with symbolic sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

if TYPE_CHECKING:
    from moec.targets.tvm.lowering import Lowering


def broadcast_dimension(left: Any, right: Any) -> Any:
    """The common size. Two symbolic sizes that differ are taken as equal here; :func:`aligned` has that checked when
    the program runs, so that a size that turns out as 1 is an error and never a wrong result."""
    if isinstance(left, int) and left == 1:
        return right
    if isinstance(right, int) and right == 1:
        return left
    simpler = isinstance(right, int) or (isinstance(right, tirx.Var) and not isinstance(left, (int, tirx.Var)))
    return right if simpler else left


def broadcast_shape(shapes: Sequence[Sequence[Any]]) -> list[Any]:
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Any] = [1] * rank
    for shape in shapes:
        for axis, size in enumerate(shape, rank - len(shape)):
            result[axis] = broadcast_dimension(result[axis], size)
    return result


def aligned(lowering: Lowering, tensor: relax.Expr, shape: Sequence[Any], target: Sequence[Any]) -> relax.Expr:
    """The tensor with each dim spelled as in ``target`` or 1; a difference that is not provably one is checked when
    the program runs."""
    offset = len(target) - len(shape)
    wanted = [size if size == 1 else target[offset + axis] for axis, size in enumerate(shape)]
    if all(lowering.sizes.equal(have, want) for have, want in zip(shape, wanted, strict=True)):
        return tensor
    return lowering.assume_shape(tensor, wanted)


def load(tensor: te.Tensor, shape: Sequence[Any], indices: Sequence[tirx.Expr]) -> tirx.Expr:
    """The element of a broadcast operand at the result's indices."""
    own = indices[len(indices) - len(shape) :]
    return tensor(*(0 if size == 1 else index for size, index in zip(shape, own, strict=True)))


def immediate(lowering: Lowering, value: ir.Value) -> tirx.Expr | None:
    """The value as a number in the code, if it is a constant of one element."""
    if not lowering.is_constant(value) or any(size != 1 for size in lowering.dimensions(value)):
        return None
    dtype = lowering.dtype(value)
    number = np.asarray(lowering.constant(value)).reshape(()).item()
    return tirx.const(number, dtype)


def emit_elementwise(
    lowering: Lowering, values: Sequence[ir.Value], function: Callable[..., tirx.Expr], name: str
) -> relax.Var:
    """One kernel that applies ``function`` to the operands' elements. Constants of one element become immediates."""
    immediates = [immediate(lowering, value) for value in values]
    if all(number is not None for number in immediates):
        immediates[0] = None
    shape = broadcast_shape([lowering.dimensions(value) for value in values])
    tensors, shapes = [], []
    for value, number in zip(values, immediates, strict=True):
        if number is None:
            tensors.append(aligned(lowering, lowering.tensor(value), lowering.dimensions(value), shape))
            shapes.append(lowering.dimensions(value))

    def build(*operands: te.Tensor) -> te.Tensor:
        def element(*indices: tirx.Expr) -> tirx.Expr:
            loads = iter([load(operand, own, indices) for operand, own in zip(operands, shapes, strict=True)])
            return function(*(next(loads) if number is None else number for number in immediates))

        return te.compute([lowering.sizes.expression(size) for size in shape], element, name=name)

    return lowering.compute(build, tensors, name)[0]
