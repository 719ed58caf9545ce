"""The grouped products of a node, computed in one of several ways that the host picks by the number of tokens.

The host knows this number without waiting for the device. Few tokens are computed pair by pair. More tokens are sorted
into blocks of rows. The height of blocks follows from the average number of rows of an expert, since all rows of a
block are computed, even padding. The crossovers between the ways are estimated (:mod:`.estimates.crossovers`), and
``moec tune`` measures them. Each way is a launch of its own, which the host skips if another way is better
(:mod:`~moec.targets.gpu.lowering.ways`). All ways write the same results, except for the order of summation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm import relax, tirx

from moec.common.work import SizedWork
from moec.targets.cuda.block_dispatch import BlockDispatch
from moec.targets.cuda.estimates.crossovers import FEW_TOKENS, block_heights, few_tokens
from moec.targets.cuda.estimates.sizes import SLOTS, TOKENS
from moec.targets.cuda.kernels.grouped_gemm_mma import GROUPED_GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_scaled import GROUPED_GEMM_SCALED
from moec.targets.cuda.kernels.grouped_gemm_umma import GROUPED_GEMM_UMMA
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GROUPED_GEMM_WGMMA
from moec.targets.cuda.kernels.umma_tile import PAIR_ROWS, umma_tile
from moec.targets.cuda.kernels.wgmma_tile import wgmma_tile
from moec.targets.gpu.kernels.grouped_gemm_simt import GROUPED_GEMM_SIMT
from moec.targets.gpu.kernels.grouped_gemv import GROUPED_GEMV
from moec.targets.gpu.kernels.grouped_problem import GroupedProblem
from moec.targets.gpu.kernels.round_rows import ROUND, RowRounding, round_blocks, round_pairs
from moec.targets.gpu.lowering.ways import TokenRange, crossover_to, ranges_between, shape_of
from moec.targets.tvm.kernels.kernel import KernelCall
from moec.targets.tvm.lowering.node_lowering import NodeLowering
from moec.targets.tvm.sizes.shapes import static_size

PRODUCTS = (GROUPED_GEMM_UMMA, GROUPED_GEMM_WGMMA, GROUPED_GEMM_SCALED, GROUPED_GEMM_MMA, GROUPED_GEMM_SIMT)
"""Kernels for blocks of rows."""
BLOCK_ROWS = (16, 64, 128)
"""Heights of blocks on tensor cores."""
_TILES = {GROUPED_GEMM_WGMMA: wgmma_tile, GROUPED_GEMM_UMMA: umma_tile}
"""Tiles of kernels that may compute only a part of a block, by kernel."""
_MOST_FEW_TOKENS = 128
"""The largest number of tokens that may go pair by pair, also after tuning: every pair reads all weights of its expert,
and the number of threads has to fit into 32 bits."""
_PLAIN_ROWS = 64
"""The height of blocks if a product runs without tensor cores."""


@dataclasses.dataclass(frozen=True)
class ExpertsProduct:
    """A product for all or some of the experts. ``problem``: what it computes, independent of the height of blocks;
    ``operands``: the tensors of matrix and bias."""

    problem: GroupedProblem
    operands: Sequence[relax.Expr]


class GroupedProducts:
    """The products of one node, all over the same pairs. ``problems``: what they compute, independent of the height of
    blocks; ``ids`` and ``weights``: experts and routing weights [T, k]; ``capacity``: the most pairs of an expert, 0
    for no limit.

    For few tokens either all products go pair by pair or none does, because one reads rows in the order in which the
    other wrote them. In a batch of sequences (:mod:`moec.ir.batches`) a token has to have the same bits among any
    number of others, so the kernels for the highest blocks compute all of them.
    """

    def __init__(
        self,
        node: NodeLowering,
        experts: int,
        problems: Sequence[GroupedProblem],
        ids: relax.Expr,
        weights: relax.Expr,
        capacity: int = 0,
    ) -> None:
        self._node, self._experts, self._ids, self._weights = node, experts, ids, weights
        alike = node.lowering.batch is not None
        has_few = not alike and all(GROUPED_GEMV.why_not(problem, node.machine) is None for problem in problems)
        slots = static_size(ids.ty.shape[1])
        on_tensor_cores = all(self._on_tensor_cores(problem) for problem in problems)
        heights = heights_on_tensor_cores(problems, node.machine) if on_tensor_cores else (_PLAIN_ROWS,)
        if alike:
            heights = self._that_add_alike(problems, heights)
        # At least 16 pairs per expert, so that the results of few tokens, pair by pair, fit as well.
        served = tirx.min(self.pairs, experts * max(capacity, FEW_TOKENS)) if capacity else self.pairs
        expert_bytes = sum(problem.experts * problem.matrix_bytes for problem in problems) / experts
        few = few_tokens(experts, slots, expert_bytes) if on_tensor_cores else FEW_TOKENS
        largest = max(problem.matrix_bytes for problem in problems)
        estimates = block_heights(experts, slots, heights, few + 1 if has_few else 0, largest)
        shape = shape_of(problems, slots)
        # With a capacity, the tensors are sized for blocks; more tokens than this might not fit pair by pair.
        most_few = FEW_TOKENS if capacity else _MOST_FEW_TOKENS
        crossovers = [
            crossover_to(f"blocks_of_{rows}", shape, node.machine, tokens.least, None if position else most_few + 1)
            for position, (rows, tokens) in enumerate(estimates)
            if has_few or position
        ]
        ranges = ranges_between(crossovers)
        self.few = ranges[0] if has_few else None
        """The numbers of tokens that go pair by pair; None if that is never done."""
        self.many = TokenRange(tuple(crossovers[:1])) if has_few else TokenRange()
        """The numbers of tokens that go in blocks."""
        dispatch = BlockDispatch(node, experts, ids, served)
        self._blocks = [
            dispatch.into_blocks(rows, estimate, tokens)
            for (rows, estimate), tokens in zip(estimates, ranges[-len(estimates) :], strict=True)
        ]

    @property
    def pairs(self) -> Any:
        """The number of pairs, T * k, as an expression."""
        return self._ids.ty.shape[0] * self._ids.ty.shape[1]

    @property
    def places(self) -> Any:
        """Rows of a tensor with room for the results of any way, in the order of its blocks."""
        highest = max(blocks.rows for blocks in self._blocks)
        return next(blocks.sorted_pairs.ty.shape[0] for blocks in self._blocks if blocks.rows == highest)

    def multiply(
        self,
        products: Sequence[ExpertsProduct],
        rows: relax.Expr,
        count: Any,
        epilogue: Callable[..., Any],
        activation: str = "none",
        *,
        few: bool = True,
    ) -> relax.Var:
        """Multiply ``rows`` and return the result [count, width]. ``products``: one for each group of experts, which
        together serve all experts. ``few``: whether to emit the way pair by pair, too."""
        problem = products[0].problem
        output = relax.TensorType((count, problem.width), problem.out_dtype)
        results: list[relax.Var] = []
        for called in (
            call for product in products for call in self._calls(product, rows, epilogue, activation, few=few)
        ):
            results = self._node.call_on(called, results) if results else self._node.call(called, [output])
        (result,) = results
        return result

    def _calls(
        self, product: ExpertsProduct, rows: relax.Expr, epilogue: Callable[..., Any], activation: str, *, few: bool
    ) -> Iterator[KernelCall]:
        """The calls of a product, one for each way; each is launched only for its numbers of tokens."""
        problem, operands = product.problem, [rows, *product.operands, self._weights]
        weights = len(operands) - 1  # the parameter whose first size is the number of tokens
        if few and self.few is not None:
            function = self.few.limited(GROUPED_GEMV.build(problem, epilogue), weights)
            arguments = [*self.few.numbers(self._node.lowering), *operands, self._ids]
            attributes = _attributes(problem, activation, self.few)
            chosen, work = self._node.select((GROUPED_GEMV,), problem), work_of_pairs(problem, self._experts)
            yield KernelCall(chosen, function, arguments, attributes, self.few.names, sized_work=work)
        for blocks in self._blocks:
            tiled = dataclasses.replace(problem, block_rows=blocks.rows)
            chosen, tokens = self._node.select(PRODUCTS, tiled), blocks.tokens
            function = tokens.limited(chosen.kernel.build(tiled, epilogue), weights)
            numbers = tokens.numbers(self._node.lowering)
            arguments = [*numbers, *operands, blocks.sorted_pairs, blocks.experts, blocks.count]
            attributes = _attributes(tiled, activation, tokens) | chosen.tile_of(tiled)
            tile_of = _TILES.get(chosen.kernel)
            padded = blocks.rows if tile_of is None else tile_of(tiled).computed_multiple
            work = work_of_pairs(problem, self._experts, padded)
            yield KernelCall(chosen, function, arguments, attributes, tokens.names, sized_work=work)

    def rounded(self, hidden: relax.Var, rounding: RowRounding) -> relax.Var:
        """The results of the first product, rounded. Each way rounds them in the order in which it stores its rows."""
        width, dtype = rounding.out_type
        output = relax.TensorType((hidden.ty.shape[0], width), dtype)
        results: list[relax.Var] = []
        for tokens, function, arguments in self._roundings(rounding):
            operands = [*tokens.numbers(self._node.lowering), self._ids, *arguments, hidden]
            attributes = {"group": rounding.group, "tokens": str(tokens)}
            chosen = self._node.select((ROUND,), rounding)
            called = KernelCall(chosen, tokens.limited(function, 0), operands, attributes, tokens.names)
            results = self._node.call_on(called, results) if results else self._node.call(called, [output])
        (result,) = results
        return result

    def _roundings(self, rounding: RowRounding) -> Iterator[tuple[TokenRange, tirx.PrimFunc, list[relax.Expr]]]:
        if self.few is not None:
            yield self.few, round_pairs(rounding), []
        for blocks in self._blocks:
            yield blocks.tokens, round_blocks(rounding, blocks.rows), [blocks.sorted_pairs, blocks.count]

    def _that_add_alike(self, problems: Sequence[GroupedProblem], heights: Sequence[int]) -> tuple[int, ...]:
        """The heights of blocks that the same kernels compute as the last one."""

        def kernels(rows: int) -> list[str]:
            tiled = [dataclasses.replace(problem, block_rows=rows) for problem in problems]
            return [self._node.select(PRODUCTS, product).kernel.name for product in tiled]

        return tuple(rows for rows in heights if kernels(rows) == kernels(heights[-1]))

    def _on_tensor_cores(self, problem: GroupedProblem) -> bool:
        """Whether the selected kernels use tensor cores, at every height of blocks."""
        tiled = (dataclasses.replace(problem, block_rows=rows) for rows in BLOCK_ROWS)
        return all(self._node.select(PRODUCTS, product).kernel is not GROUPED_GEMM_SIMT for product in tiled)


def heights_on_tensor_cores(problems: Sequence[GroupedProblem], architecture: str) -> tuple[int, ...]:
    """Heights of blocks, the highest of which pairs of blocks of threads compute if they can compute all problems."""
    highest = [dataclasses.replace(problem, block_rows=PAIR_ROWS) for problem in problems]
    in_pairs = all(GROUPED_GEMM_UMMA.why_not(problem, architecture) is None for problem in highest)
    return (*BLOCK_ROWS[:-1], PAIR_ROWS) if in_pairs else BLOCK_ROWS


def work_of_pairs(problem: GroupedProblem, experts: int, block_rows: int = 0) -> SizedWork:
    """The work of a product by the number of pairs. ``experts``: of the layer, of which the problem may have some;
    ``block_rows``: the multiple to which rows of an expert are computed, 0 if it goes pair by pair."""
    pairs = f"{TOKENS} * {SLOTS}"
    if problem.experts != experts:
        pairs = f"({pairs} * {problem.experts} / {experts})"
    used, (rows, _) = f"min({pairs}, {problem.experts})", problem.row_type
    tables = zip(("matrix", "scales", "zero_points"), problem.matrix_types, strict=True)
    moved = {name: f"{used} * {math.prod(shape[1:])}" for name, (shape, _) in tables}
    moved |= {"rows": f"{pairs} * {rows}", "out": f"{pairs} * {problem.width}"}
    operations = f"2 * {pairs} * {problem.columns * problem.inner}"
    return SizedWork(operations, problem.arithmetic, moved, experts, block_rows)


def _attributes(problem: GroupedProblem, activation: str, tokens: TokenRange) -> dict[str, Any]:
    """The attributes of a product that the artifact records."""
    return {**problem.facts(), "activation": activation, "tokens": str(tokens)}
