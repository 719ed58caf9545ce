"""The rows of a product as its arithmetic and its kernels ask for them.

Rows of any size get zeros behind their inputs where only then tensor cores take them. Rows that are rounded to fp8 stay
bytes with their scales where tensor cores multiply such numbers with the matrix as it is stored; else they become
floats again, and so does the matrix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir
from tvm import relax

from moec.common.dtypes import dtype_of
from moec.ir.dialect import ProductSpec
from moec.targets.cuda.kernels.fp8_rows import FP8, why_not_packed
from moec.targets.cuda.kernels.gemv_tile import why_not as why_no_gemv
from moec.targets.cuda.kernels.grouped_gemm_mma import why_not as why_no_gemm
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.launch import LOAD_BYTES
from moec.targets.cuda.kernels.mma_tile import DEPTH, SHAPES
from moec.targets.cuda.kernels.pad_rows import PAD_ROWS, Padding
from moec.targets.cuda.kernels.round_rows import ROUND, Rounding
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.kernel import KernelCall, select
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.nodes import flatten, record_of, reshape

_ROUNDING = ("int8", "fp8")
"""Arithmetics that rows are rounded for by a kernel of its own."""


def is_rounded(spec: ProductSpec) -> bool:
    return spec.arithmetic in _ROUNDING


def computed_in(node: NodeLowering, spec: ProductSpec) -> relax.Expr:
    """The tokens x[..., K] in the type that products compute in."""
    x = node.tensor("x")
    return node.cast(x, "bfloat16") if spec.arithmetic == "bfloat16" else x


def uses_tf32(spec: ProductSpec, dtype: str) -> bool:
    """Whether products round rows of that type to tf32; floats of 16 bits are such numbers already."""
    return spec.arithmetic == "tf32" and dtype == "float32"


def padded_inputs(problems: Sequence[GroupedProblem], architecture: str) -> int:
    """How many inputs the rows of these products, which read the same ones, are to have, with zeros behind their own:
    so many that tensor cores multiply them, or warps read them, where these could not; else their own."""
    (inner,) = {problem.inner for problem in problems}
    multiple = max(map(_inputs_at_once, problems))
    padded = -(-inner // multiple) * multiple
    more = any(
        _ways(dataclasses.replace(problem, inner=padded), architecture) > _ways(problem, architecture)
        for problem in problems
    )
    return padded if more else inner


def _inputs_at_once(problem: GroupedProblem) -> int:
    """What the number of inputs has to be a multiple of: of k-tiles that are decoded, and of 16 bytes."""
    smallest = min(dtype_of(dtype).itemsize for dtype in (problem.dtype, problem.matrix_dtype))
    return DEPTH if problem.decodes else LOAD_BYTES // smallest


def _ways(problem: GroupedProblem, architecture: str) -> int:
    """Of tiles on tensor cores and warps for few rows, how many can compute it."""
    tiled = dataclasses.replace(problem, block_rows=min(SHAPES))
    return (why_no_gemm(tiled, architecture) is None) + (why_no_gemv(problem) is None)


def with_rows_of(spec: ProductSpec, problems: Sequence[GroupedProblem], architecture: str) -> list[GroupedProblem]:
    """The products, which read the same rows, with the type that these have: fp8 where the arithmetic asks for it and
    tensor cores multiply it with all of the matrices, else that which they have."""
    if spec.arithmetic != "fp8" or any(_why_floats(spec, problem, architecture) for problem in problems):
        return list(problems)
    return [dataclasses.replace(problem, dtype=FP8) for problem in problems]


def _why_floats(spec: ProductSpec, problem: GroupedProblem, architecture: str) -> str | None:
    """The reason why rows that are rounded to fp8 become floats again, or None."""
    packed = dataclasses.replace(problem, dtype=FP8)
    tiled = (dataclasses.replace(packed, block_rows=rows) for rows in SHAPES)
    reasons = (why_no_gemm(one, architecture) for one in tiled)
    return why_not_packed(problem.inner, spec.activation_group) or next(filter(None, reasons), why_no_gemv(packed))


def rounding_of(spec: ProductSpec, problem: GroupedProblem, dtype: str, architecture: str) -> Rounding:
    """How rows of ``dtype`` are rounded for a product."""
    why_floats = ""
    if spec.arithmetic == "fp8" and not problem.in_fp8:
        why_floats = _why_floats(spec, problem, architecture) or "other experts of the layer need floats"
    return Rounding(problem.inner, spec.activation_group, dtype, spec.arithmetic, problem.in_fp8, why_floats)


def padded(
    lowering: LoweringContext, node: ir.Node, architecture: str, x: relax.Expr, inner: int, wanted: int
) -> relax.Expr:
    """The rows x[..., inner] as [..., wanted], with zeros behind."""
    if inner == wanted:
        return x
    shape, padding = list(x.ty.shape), Padding(inner, wanted, str(x.ty.dtype))
    rows = x if len(shape) == 2 else flatten(lowering, x, len(shape) - 1)
    rows = lowering.assume_shape(rows, [rows.ty.shape[0], inner])
    called = KernelCall(select((PAD_ROWS,), padding, architecture), PAD_ROWS.build(padding), [rows])
    output = relax.TensorType((rows.ty.shape[0], wanted), padding.dtype)
    (result,) = lowering.call_kernel(called.function, called.arguments, [output], record_of(node, called))
    return result if len(shape) == 2 else reshape(lowering, result, [*shape[:-1], wanted])


def prepared(node: NodeLowering, spec: ProductSpec, problem: GroupedProblem, x: relax.Expr, inner: int) -> relax.Expr:
    """The tokens x[..., inner] as a product takes them: with the inputs that it has, and rounded where its arithmetic
    says so; where they are packed, [..., bytes of a row]."""
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
