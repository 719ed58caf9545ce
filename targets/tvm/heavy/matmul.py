"""Matrix products on any target: MatMul, Gemm and Einsum down to products with a constant matrix and of batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.targets.tvm.heavy.einsum import lower_einsum
from moec.targets.tvm.kernels.kernel import STORAGE_TYPES
from moec.targets.tvm.lowering.attributes import attribute, optional_input, required_input
from moec.targets.tvm.lowering.context import HeavyConverter, LoweringContext
from moec.targets.tvm.lowering.nodes import flatten, reshape, transpose
from moec.targets.tvm.sizes.shapes import product, static_size


@dataclasses.dataclass(frozen=True)
class ConstantMatrix:
    """A constant of the graph as the matrix [inner, columns]; ``transposed``: it is stored as [columns, inner]."""

    value: ir.Value
    inner: int
    columns: int
    transposed: bool

    @staticmethod
    def of(lowering: LoweringContext, value: ir.Value, transposed: bool = False) -> ConstantMatrix:
        first, second = (int(size) for size in lowering.shape(value))
        return ConstantMatrix(value, *((second, first) if transposed else (first, second)), transposed)

    def load(self, lowering: LoweringContext) -> np.ndarray:
        """The numbers [inner, columns]."""
        data = lowering.constant(self.value)
        assert data is not None, f"{self.value.name} was a constant before"
        return data.T if self.transposed else data


@dataclasses.dataclass(frozen=True)
class Bias:
    """``factor * value`` [columns], added to every row of a product."""

    value: ir.Value
    factor: float = 1.0


class MatrixProducts(Protocol):
    """A target's products for one machine. ``repeats``: whether products of batches read a factor again for each of
    several batches."""

    repeats: ClassVar[bool]

    def with_constant(
        self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: ConstantMatrix, bias: Bias | None
    ) -> relax.Expr:
        """``left[M, inner] @ right + bias``; that left has so many columns may be known only when it runs."""
        ...

    def of_batches(self, lowering: LoweringContext, node: ir.Node, left: relax.Expr, right: relax.Expr) -> relax.Expr:
        """``left[B|1, M, K] @ right[B|1, K, N]``. If the target repeats factors, one of them may have fewer batches,
        which divide the others': batch b reads batch ``b`` modulo their number."""
        ...


def converters(products: MatrixProducts) -> Mapping[str, HeavyConverter]:
    """The converters of matrix products."""

    def convert_einsum(lowering: LoweringContext, node: ir.Node) -> relax.Expr:
        return lower_einsum(lowering, node, lambda left, right: products.of_batches(lowering, node, left, right))

    def converter(lower: Callable[..., relax.Expr]) -> HeavyConverter:
        return lambda lowering, node: lower(products, lowering, node)

    return {"Einsum": convert_einsum, "Gemm": converter(_lower_gemm), "MatMul": converter(_lower_matmul)}


def _lower_matmul(products: MatrixProducts, lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """ONNX MatMul: numpy's ``matmul``, vectors and broadcast batches included."""
    left, right = lowering.tensor(required_input(node, 0)), required_input(node, 1)
    shape, right_shape = list(left.ty.shape), lowering.shape(right)
    if len(shape) == 1:
        left = reshape(lowering, left, [1, *shape])
    if _is_matrix(lowering, right):
        matrix = ConstantMatrix.of(lowering, right)
        rows = left if len(left.ty.shape) == 2 else flatten(lowering, left, len(left.ty.shape) - 1)
        result = products.with_constant(lowering, node, rows, matrix, None)
        return result if len(shape) == 2 else reshape(lowering, result, [*shape[:-1], matrix.columns])
    columns, factor = right_shape[-1:], lowering.tensor(right)
    if len(right_shape) == 1:
        factor, columns = reshape(lowering, factor, [*right_shape, 1]), []
    batch = lowering.broadcast_shape([shape[:-2], right_shape[:-2]])
    factors = [_as_batches(lowering, operand, batch, repeats=products.repeats) for operand in (left, factor)]
    result = products.of_batches(lowering, node, *factors)
    return reshape(lowering, result, [*batch, *shape[:-1][-1:], *columns])


def _lower_gemm(products: MatrixProducts, lowering: LoweringContext, node: ir.Node) -> relax.Expr:
    """ONNX Gemm: ``alpha * A' @ B' + beta * C``, each of A' and B' transposed or not."""
    alpha, beta = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    order = [1, 0] if attribute(node, "transA", 0) else [0, 1]
    left = transpose(lowering, lowering.tensor(required_input(node, 0)), order)
    right, transposed = required_input(node, 1), bool(attribute(node, "transB", 0))
    bias = optional_input(node, 2)
    if _is_matrix(lowering, right):
        matrix = ConstantMatrix.of(lowering, right, transposed)
        if alpha == 1.0 and bias is not None and _is_vector(lowering, bias, matrix.columns):
            return products.with_constant(lowering, node, left, matrix, Bias(bias, beta))
        result = products.with_constant(lowering, node, left, matrix, None)
    else:
        factor = transpose(lowering, lowering.tensor(right), [1, 0] if transposed else [0, 1])
        batches = [reshape(lowering, operand, [1, *operand.ty.shape]) for operand in (left, factor)]
        batch = products.of_batches(lowering, node, *batches)
        result = reshape(lowering, batch, list(batch.ty.shape)[1:])
    result = lowering.emit(_scaled(result, alpha))
    if bias is None:
        return result
    addend = lowering.emit(_scaled(lowering.tensor(bias), beta))
    return relax.op.add(result, lowering.broadcast_to(addend, result.ty.shape))


def _is_matrix(lowering: LoweringContext, value: ir.Value) -> bool:
    """Whether it is a constant matrix of a type that kernels load."""
    return len(lowering.shape(value)) == 2 and lowering.is_constant(value) and lowering.dtype(value) in STORAGE_TYPES


def _is_vector(lowering: LoweringContext, value: ir.Value, columns: int) -> bool:
    """Whether every row gets the same ``columns`` numbers of it."""
    *others, last = lowering.shape(value) or [1]
    return static_size(last) == columns and all(static_size(size) == 1 for size in others)


def _scaled(tensor: relax.Expr, factor: float) -> relax.Expr:
    return tensor if factor == 1.0 else relax.op.multiply(tensor, relax.const(factor, str(tensor.ty.dtype)))


def _as_batches(lowering: LoweringContext, tensor: relax.Expr, batch: Sequence[Any], *, repeats: bool) -> relax.Expr:
    """The tensor [..., X, Y] as [B|1, X, Y] for the broadcast batch sizes; copies only where some, but not all of the
    batch axes have to be repeated, or which ones is seen when the program runs. A target that ``repeats`` batches does
    so where only the first axes have to be repeated."""
    shape = list(tensor.ty.shape)
    own, matrix = shape[:-2], shape[-2:]
    if repeats and (inner := _inner_batches(lowering, own, batch)):
        return reshape(lowering, tensor, [product(inner), *matrix])
    if all(static_size(size) == 1 for size in own):
        return reshape(lowering, tensor, [1, *matrix])
    return reshape(lowering, lowering.broadcast_to(tensor, [*batch, *matrix]), [product(batch), *matrix])


def _inner_batches(lowering: LoweringContext, own: Sequence[Any], batch: Sequence[Any]) -> list[Any]:
    """The static batch axes of a factor after those of size 1, if they are the last ones of ``batch``; else none."""
    sizes = list(own)
    while sizes and static_size(sizes[0]) == 1:
        del sizes[0]
    last = list(batch)[len(batch) - len(sizes) :]
    is_static = all(static_size(size) is not None for size in sizes)
    return sizes if is_static and all(map(lowering.sizes.equal, sizes, last)) else []
