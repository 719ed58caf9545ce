"""Products with one constant matrix, and which of several ways each takes when the program runs.

The number of rows decides, which the host knows. Up to :data:`~moec.targets.cuda.kernels.gemv.FEW_ROWS` rows take the
time that reading the matrix takes. Of tiles, the highest read it least often; lower ones are taken where those would be
too few to keep the device busy. Every way is a launch of its own that the host leaves out where another is better
(:mod:`.launch_ways`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax

from moec.ir.dialect import Activation, ExpertsSpec
from moec.targets.base import SizeRange
from moec.targets.cuda.expert_matrices import as_stored
from moec.targets.cuda.kernels.activation import activate
from moec.targets.cuda.kernels.gemv import FEW_ROWS, GEMV
from moec.targets.cuda.kernels.grouped_gemm_mma import GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_simt import GEMM_SIMT
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GEMM_WGMMA
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.mma_tile import COLUMNS, SHAPES
from moec.targets.cuda.kernels.tiled_kernels import DenseLaunch
from moec.targets.cuda.launch_ways import Way, call_ways
from moec.targets.tvm.heavy import LoweringContext
from moec.targets.tvm.kernel import Selection, select
from moec.targets.tvm.nodes import flatten, reshape

PRODUCTS = (GEMV, GEMM_WGMMA, GEMM_MMA, GEMM_SIMT)
_PLAIN_ROWS = 64
"""The height of a tile without tensor cores."""
_BUSY_BLOCKS = 128
"""So many tiles keep a device busy: about as many as it has multiprocessors."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """The kernel for some numbers of rows, and the problem that it is for."""

    problem: GroupedProblem
    selection: Selection
    rows: SizeRange


def choices(problem: GroupedProblem, architecture: str) -> list[Choice]:
    """How the product is computed for all numbers of rows, few rows first."""
    few = select(PRODUCTS, DenseLaunch(problem, FEW_ROWS), architecture)
    found, least = [], 0
    if few.kernel is GEMV:
        found, least = [Choice(problem, few, SizeRange(0, FEW_ROWS))], FEW_ROWS + 1
    for height, most in _heights(problem, architecture):
        if most is None or most >= least:
            tiled = dataclasses.replace(problem, block_rows=height)
            selection = select(PRODUCTS, DenseLaunch(tiled, most), architecture)
            found.append(Choice(tiled, selection, SizeRange(least, most)))
            least = 0 if most is None else most + 1
    return found


def _heights(problem: GroupedProblem, architecture: str) -> Iterator[tuple[int, int | None]]:
    """Heights of tiles, lowest first, and the largest number of rows that each is for."""
    tiled = (dataclasses.replace(problem, block_rows=rows) for rows in SHAPES)
    if any(select(PRODUCTS, DenseLaunch(product, None), architecture).kernel is GEMM_SIMT for product in tiled):
        yield _PLAIN_ROWS, None
        return
    tiles_across = -(-problem.columns // COLUMNS)
    for height, higher in zip(SHAPES, [*list(SHAPES)[1:], None], strict=True):
        yield height, None if higher is None else higher * _BUSY_BLOCKS // tiles_across


def multiply_matrix(
    lowering: LoweringContext,
    node: ir.Node,
    architecture: str,
    problem: GroupedProblem,
    x: relax.Expr,
    operands: Sequence[relax.Expr],
    activation: Activation = "identity",
) -> relax.Expr:
    """``activation(x[..., inner] @ matrix.T + bias)``, with rows as the problem has them; ``operands``: the matrix
    [1, width, inner], or the three tensors of a quantised one, and the bias [1, width]."""
    shape = list(x.ty.shape)
    rows = x if len(shape) == 2 else flatten(lowering, x, len(shape) - 1)
    rows = lowering.assume_shape(rows, [rows.ty.shape[0], problem.row_type[0]])
    ways = [_way(choice, activation) for choice in choices(problem, architecture)]
    output = relax.TensorType((rows.ty.shape[0], problem.width), problem.out_dtype)
    result = call_ways(lowering, node, ways, 0, [rows, *operands], output)
    return result if len(shape) == 2 else reshape(lowering, result, [*shape[:-1], problem.width])


def _way(choice: Choice, activation: Activation) -> Way:
    spec, problem, chosen = ExpertsSpec(activation=activation), choice.problem, choice.selection

    def epilogue(total: Any) -> Any:
        return activate(spec, total, problem.out_dtype)

    attributes = {**problem.facts(), "activation": activation, "rows": str(choice.rows), **chosen.tile_of(problem)}
    return Way(chosen, chosen.kernel.build(problem, epilogue), choice.rows, attributes)


def no_bias(lowering: LoweringContext) -> relax.Expr:
    """What products take that are not biased."""
    return lowering.add_weight("no bias", (1, 1), "float32", lambda: np.zeros((1, 1), np.float32))


def bias_operand(lowering: LoweringContext, value: ir.Value | None, width: int, factor: float = 1.0) -> relax.Expr:
    """A bias [width] as kernels take it, [1, width] in float32 and times ``factor``."""
    if value is None:
        return no_bias(lowering)
    if lowering.is_constant(value):

        def load() -> np.ndarray:
            numbers = lowering.constant(value)
            assert numbers is not None, f"{value.name} was a constant before"
            return as_stored(numbers, "float32").reshape(1, width) * np.float32(factor)

        return lowering.add_weight(f"{value.name}.bias.{factor}", (1, width), "float32", load)
    tensor = reshape(lowering, lowering.tensor(value), [1, width])
    wide = tensor if str(tensor.ty.dtype) == "float32" else relax.op.astype(tensor, "float32")
    return lowering.emit(wide if factor == 1.0 else relax.op.multiply(wide, relax.const(factor, "float32")))
