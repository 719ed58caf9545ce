"""The input rows of a product, in the size and type that its arithmetic and its kernels need.

Rows are padded with trailing zeros if tensor cores cannot take them otherwise. Rows that are rounded to small floats
stay codes with scales if tensor cores can multiply them with the matrix as it is stored. Otherwise rows and matrix
become floats again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.ir.dialect import GROUPED_ARITHMETICS, ProductSpec
from moec.targets.cuda.kernels.grouped_gemm_mma import why_not as why_no_gemm
from moec.targets.cuda.kernels.grouped_gemm_scaled import why_not as why_not_scaled
from moec.targets.cuda.kernels.mma_tile import DEPTH, SHAPES
from moec.targets.gpu.kernels.block_scaled_rows import BLOCK_SCALINGS, SPAN
from moec.targets.gpu.kernels.fp8_rows import FP8, why_not_packed
from moec.targets.gpu.kernels.gemv_tile import why_not as why_no_gemv
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.launch import LOAD_BYTES
from moec.targets.gpu.kernels.pad_rows import PAD_ROWS, Padding
from moec.targets.gpu.kernels.round_rows import ROUND, RowRounding
from moec.targets.tvm.kernels.kernel import KernelCall, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.lowering.nodes import flatten, record_of, reshape


def is_rounded(spec: ProductSpec) -> bool:
    """Whether a separate kernel rounds the rows."""
    return spec.arithmetic in GROUPED_ARITHMETICS


def computed_in(node: NodeLowering, spec: ProductSpec) -> relax.Expr:
    """The tokens x[..., K], cast to the type in which products are computed."""
    x = node.tensor("x")
    return node.cast(x, "bfloat16") if spec.arithmetic == "bfloat16" else x


def uses_tf32(spec: ProductSpec, dtype: str) -> bool:
    """Whether products round rows of that type to tf32. Floats of 16 bits need no rounding: tf32 represents them."""
    return spec.arithmetic == "tf32" and dtype == "float32"


def padded_inputs(problems: Sequence[GroupedProblem], architecture: str, arithmetic: str = "float32") -> int:
    """The number of inputs, with trailing padding, of the rows that these products share. It is larger than their own
    number only if padding lets more kernels compute them: tensor cores, also with block scales, or warps for few
    rows."""
    (inner,) = {problem.inner for problem in problems}
    spans = -(-inner // SPAN) * SPAN
    scaled = [_with_block_scales(dataclasses.replace(problem, inner=spans), arithmetic) for problem in problems]
    if all(problem is not None and _why_no_tile(problem, architecture) is None for problem in scaled):
        return spans
    multiple = max(map(_inputs_at_once, problems))
    padded = -(-inner // multiple) * multiple
    more = any(
        _ways(dataclasses.replace(problem, inner=padded), architecture) > _ways(problem, architecture)
        for problem in problems
    )
    return padded if more else inner


def _inputs_at_once(problem: GroupedProblem) -> int:
    """The number of inputs that the padded number has to be a multiple of: a k-tile if the matrix is decoded, otherwise
    16 bytes."""
    smallest = min(dtype_of(dtype).itemsize for dtype in (problem.dtype, problem.matrix_dtype))
    return DEPTH if problem.decodes else LOAD_BYTES // smallest


def _ways(problem: GroupedProblem, architecture: str) -> int:
    """The number of kernels, of those with tiles on tensor cores and with warps for few rows, that can compute it."""
    return (_why_no_tile(problem, architecture) is None) + (why_no_gemv(problem) is None)


def _why_no_tile(problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why tensor cores cannot compute tiles of some height, or None."""
    why_not = why_no_gemm if problem.scaling is None else why_not_scaled
    tiled = (dataclasses.replace(problem, block_rows=rows) for rows in SHAPES)
    return next(filter(None, (why_not(tile, architecture) for tile in tiled)), None)


def _with_block_scales(problem: GroupedProblem, arithmetic: str) -> GroupedProblem | None:
    """The product with rows that have block scales; None if the arithmetic has none."""
    scaling = BLOCK_SCALINGS.get(arithmetic)
    return None if scaling is None else dataclasses.replace(problem, dtype="uint8", scaling=scaling)


def with_rows_of(spec: ProductSpec, problems: Sequence[GroupedProblem], architecture: str) -> list[GroupedProblem]:
    """The products with the type of the rows that they share. Rows become codes with scales if that is the arithmetic
    and kernels can multiply them with all of the matrices; otherwise they stay."""
    packed = [_packed(spec, problem) for problem in problems]
    if any(row is None or _why_floats(spec, row, architecture) for row in packed):
        return list(problems)
    return [row for row in packed if row is not None]


def _packed(spec: ProductSpec, problem: GroupedProblem) -> GroupedProblem | None:
    """The product with rows that are codes with scales; None if its arithmetic has none."""
    if spec.arithmetic == "fp8":
        return dataclasses.replace(problem, dtype=FP8)
    return _with_block_scales(problem, spec.arithmetic)


def _why_floats(spec: ProductSpec, packed: GroupedProblem, architecture: str) -> str | None:
    """The reason why rows that are rounded to small floats have to become floats again, or None."""
    why_not = why_not_packed if packed.scaling is None else packed.scaling.why_not
    reason = _why_no_tile(packed, architecture) or why_not(packed.inner, spec.activation_group)
    return reason or why_no_gemv(packed)


def rounding_of(spec: ProductSpec, problem: GroupedProblem, dtype: str, architecture: str) -> RowRounding:
    """The rounding of rows of ``dtype`` for a product."""
    why_floats = ""
    packed = _packed(spec, problem)
    if packed is not None and not problem.is_packed:
        why_floats = _why_floats(spec, packed, architecture) or "other experts of the layer need floats"
    return RowRounding(problem.inner, spec.activation_group, dtype, spec.arithmetic, problem.is_packed, why_floats)


def padded(
    lowering: LoweringContext, node: ir.Node, architecture: str, x: relax.Expr, inner: int, width: int
) -> relax.Expr:
    """The rows x[..., inner] padded with trailing zeros to [..., wanted]."""
    if inner == width:
        return x
    shape, padding = list(x.ty.shape), Padding(inner, width, str(x.ty.dtype))
    rows = x if len(shape) == 2 else flatten(lowering, x, len(shape) - 1)
    rows = lowering.assume_shape(rows, [rows.ty.shape[0], inner])
    called = KernelCall(select((PAD_ROWS,), padding, architecture), PAD_ROWS.build(padding), [rows])
    output = relax.TensorType((rows.ty.shape[0], width), padding.dtype)
    (result,) = lowering.call_kernel(called.function, called.arguments, [output], record_of(node, called))
    return result if len(shape) == 2 else reshape(lowering, result, [*shape[:-1], width])


def prepared(node: NodeLowering, spec: ProductSpec, problem: GroupedProblem, x: relax.Expr, inner: int) -> relax.Expr:
    """The tokens x[..., inner] as a product takes them: padded to the inputs that it has, and rounded if its arithmetic
    asks for it. Packed rows are [..., bytes of a row]."""
    x = padded(node.lowering, node.node, node.machine, x, inner, problem.inner)
    if not is_rounded(spec):
        return x
    rounding, shape = rounding_of(spec, problem, str(x.ty.dtype), node.machine), list(x.ty.shape)
    rows = x if len(shape) == 2 else flatten(node.lowering, x, len(shape) - 1)
    width, dtype = rounding.out_type
    chosen = node.select((ROUND,), rounding)
    called = KernelCall(chosen, ROUND.build(rounding), [rows], {"group": rounding.group})
    (result,) = node.call(called, [relax.TensorType((rows.ty.shape[0], width), dtype)])
    return result if len(shape) == 2 else reshape(node.lowering, result, [*shape[:-1], width])
