"""Products with one constant matrix, computed in one of several ways that the host picks by the number of rows.

- Up to :data:`~moec.targets.gpu.kernels.gemv.FEW_ROWS` rows take the time of reading the matrix; they need no tiles.
- More rows are computed in tiles. The highest tiles read the matrix least often. If they would be too few to keep the
  device busy, tiles are lower, or the inputs are divided into parts, too (:mod:`.kernels.gemm_parts`).

Each way is one launch of its own, or two, which the host skips if another way is better
(:mod:`~moec.targets.gpu.lowering.ways`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, tirx

from moec.common.work import SizedWork
from moec.ir.dialect import Activation, ExpertsSpec
from moec.targets.base import SizeRange
from moec.targets.cuda.estimates.sizes import ROWS as ROW_COUNT
from moec.targets.cuda.kernels.gemm_parts import BUSY_BLOCKS, GEMM_PARTS, JOIN_PARTS, ROWS, most_rows, parts_for
from moec.targets.cuda.kernels.grouped_gemm_mma import GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_scaled import GEMM_SCALED
from moec.targets.cuda.kernels.grouped_gemm_umma import GEMM_UMMA
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GEMM_WGMMA
from moec.targets.cuda.kernels.mma_tile import COLUMNS, SHAPES
from moec.targets.cuda.kernels.umma_tile import PAIR_ROWS
from moec.targets.gpu.kernels.activation import activate
from moec.targets.gpu.kernels.gemv import FEW_ROWS, GEMV
from moec.targets.gpu.kernels.grouped_gemm_simt import GEMM_SIMT
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.tiled_kernels import DenseLaunch
from moec.targets.gpu.lowering.expert_matrices import as_stored
from moec.targets.gpu.lowering.launch_conditions import launch_if
from moec.targets.gpu.lowering.ways import LaunchChoice, call_ways
from moec.targets.tvm.kernels.kernel import KernelCall, Selection, select
from moec.targets.tvm.lowering.context import LoweringContext
from moec.targets.tvm.lowering.nodes import flatten, record_of, reshape
from moec.targets.tvm.sizes.shapes import static_size

PRODUCTS = (GEMV, GEMM_UMMA, GEMM_WGMMA, GEMM_SCALED, GEMM_MMA, GEMM_SIMT)
_PLAIN_ROWS = 64
"""Rows of a tile that is computed without tensor cores."""


@dataclasses.dataclass(frozen=True)
class KernelChoice:
    """The kernel selected for some numbers of ``rows``, and the problem that it computes."""

    problem: GroupedProblem
    selection: Selection
    rows: SizeRange


def choices(problem: GroupedProblem, architecture: str, *, alike: bool = False) -> list[KernelChoice]:
    """The selected kernels of a product, which together cover all numbers of rows; those for few rows come first.
    ``alike``: a row has to have the same bits among any number of rows, so the kernel for the most computes all."""
    if alike:
        return _alike(problem, architecture)
    few = select(PRODUCTS, DenseLaunch(problem, FEW_ROWS), architecture)
    selected, least = [], 0
    if few.kernel is GEMV:
        selected, least = [KernelChoice(problem, few, SizeRange(0, FEW_ROWS))], FEW_ROWS + 1
    divided = most_rows(problem)
    in_parts = DenseLaunch(problem, divided)
    divides = divided >= least and GEMM_PARTS.why_not(in_parts, architecture) is None
    if divides:
        selected.append(KernelChoice(problem, select((GEMM_PARTS,), in_parts, architecture), SizeRange(least, divided)))
        least = divided + 1
    for height, most in _heights(problem, architecture):
        if (most is None or most >= least) and not (divides and height < ROWS):
            tiled = dataclasses.replace(problem, block_rows=height)
            selection = select(PRODUCTS, DenseLaunch(tiled, most), architecture)
            selected.append(KernelChoice(tiled, selection, SizeRange(least, most)))
            least = 0 if most is None else most + 1
    return selected


def _alike(problem: GroupedProblem, architecture: str) -> list[KernelChoice]:
    """Tiles of one kernel, whose heights change no sum."""
    tiled = [
        (dataclasses.replace(problem, block_rows=height), most) for height, most in _heights(problem, architecture)
    ]
    tiles = [(tile, select(PRODUCTS, DenseLaunch(tile, most), architecture), most) for tile, most in tiled]
    last, selected, least = tiles[-1][1].kernel, list[KernelChoice](), 0
    for tile, selection, most in tiles:
        if selection.kernel is last and (most is None or most >= least):
            selected.append(KernelChoice(tile, selection, SizeRange(least, most)))
            least = 0 if most is None else most + 1
    return selected


def _heights(problem: GroupedProblem, architecture: str) -> Iterator[tuple[int, int | None]]:
    """Heights of tiles, lowest first, each with the largest number of rows that it is for (None: no limit)."""
    tiled = (dataclasses.replace(problem, block_rows=rows) for rows in SHAPES)
    if any(select(PRODUCTS, DenseLaunch(product, None), architecture).kernel is GEMM_SIMT for product in tiled):
        yield _PLAIN_ROWS, None
        return
    heights, tiles_across = list(SHAPES), -(-problem.columns // COLUMNS)
    highest = DenseLaunch(dataclasses.replace(problem, block_rows=PAIR_ROWS), None)
    if GEMM_UMMA.why_not(highest, architecture) is None:
        heights[-1] = PAIR_ROWS
    for height, higher in zip(heights, [*heights[1:], None], strict=True):
        yield height, None if higher is None else higher * BUSY_BLOCKS // tiles_across


def multiply_matrix(
    lowering: LoweringContext,
    node: ir.Node,
    architecture: str,
    problem: GroupedProblem,
    x: relax.Expr,
    operands: Sequence[relax.Expr],
    activation: Activation = "identity",
) -> relax.Expr:
    """Emit ``activation(x[..., inner] @ matrix.T + bias)`` [..., width] and return the result.

    ``x``: rows in the type of the problem. ``operands``: the matrix [1, width, inner], or the three tensors of a
    quantised one, and the bias [1, width].
    """
    shape = list(x.ty.shape)
    rows = x if len(shape) == 2 else flatten(lowering, x, len(shape) - 1)
    rows = lowering.assume_shape(rows, [rows.ty.shape[0], problem.row_type[0]])
    selected = choices(problem, architecture, alike=lowering.batch is not None)
    in_parts = [choice for choice in selected if choice.selection.kernel is GEMM_PARTS]
    ways = [_way(choice, activation) for choice in selected if choice not in in_parts]
    output = relax.TensorType((rows.ty.shape[0], problem.width), problem.out_dtype)
    results = [
        _multiply_in_parts(lowering, node, choice, activation, [rows, *operands], output)
        for choice in in_parts
        if choice.rows.may_hold(static_size(rows.ty.shape[0]))
    ]
    result = call_ways(lowering, node, ways, 0, [rows, *operands], output, results)
    return result if len(shape) == 2 else reshape(lowering, result, [*shape[:-1], problem.width])


def _way(choice: KernelChoice, activation: Activation) -> LaunchChoice:
    problem, chosen = choice.problem, choice.selection
    function = chosen.kernel.build(problem, _epilogue(problem, activation))
    return LaunchChoice(chosen, function, choice.rows, _attributes(choice, activation), _work(problem))


def _multiply_in_parts(
    lowering: LoweringContext,
    node: ir.Node,
    choice: KernelChoice,
    activation: Activation,
    operands: Sequence[relax.Expr],
    output: relax.TensorType,
) -> relax.Var:
    """The result for numbers of rows at which the inputs are divided into parts: one launch sums each part, another
    joins the sums."""
    problem, chosen, (rows, *matrix, bias) = choice.problem, choice.selection, operands
    few = tirx.min(rows.ty.shape[0], tirx.IntImm("int64", choice.rows.most))
    sums_type = relax.TensorType((parts_for(problem, few, "int64") * few, problem.width), "float32")
    function = launch_if(chosen.kernel.build(problem), 0, 0, choice.rows)
    attributes, work = _attributes(choice, "identity"), _work(problem)
    call = KernelCall(chosen, function, [rows, *matrix], attributes, sized_work=work)
    (sums,) = lowering.call_kernel(function, call.arguments, [sums_type], record_of(node, call))
    joined = select((JOIN_PARTS,), problem, None)
    function = launch_if(joined.kernel.build(problem, _epilogue(problem, activation)), 2, 0, choice.rows)
    call = KernelCall(joined, function, [sums, bias], {"activation": activation, "rows": str(choice.rows)})
    (result,) = lowering.call_kernel(function, call.arguments, [output], record_of(node, call))
    return result


def _attributes(choice: KernelChoice, activation: Activation) -> dict[str, Any]:
    """The attributes of a product that the artifact records."""
    tile = choice.selection.tile_of(choice.problem)
    return {**choice.problem.facts(), "activation": activation, "rows": str(choice.rows), **tile}


def _work(problem: GroupedProblem) -> SizedWork:
    return SizedWork(f"2 * {ROW_COUNT} * {problem.columns * problem.inner}", problem.arithmetic)


def _epilogue(problem: GroupedProblem, activation: Activation) -> Callable[[Any], Any]:
    spec = ExpertsSpec(activation=activation)
    return lambda total: activate(spec, total, problem.out_dtype)


def no_bias(lowering: LoweringContext) -> relax.Expr:
    """The operand of products without a bias, in place of one."""
    return lowering.add_weight("no bias", (1, 1), "float32", lambda: np.zeros((1, 1), np.float32))


def bias_operand(lowering: LoweringContext, value: ir.Value | None, width: int, factor: float = 1.0) -> relax.Expr:
    """A bias [width] as kernels take it: [1, width] in float32, multiplied by ``factor``."""
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
