"""The grouped products of a node, and which of several ways each takes when the program runs.

The number of tokens decides, which the host knows without waiting for the device. Few tokens go pair by pair. More are
sorted into blocks of rows, whose height is chosen by how many rows an expert has on average: all rows of a block are
computed, also those that are padding. From how many tokens on is estimated (:mod:`.estimates`), and measured by ``moec
tune`` (:mod:`.crossovers`). Every way is a launch of its own that the host leaves out where another is better; all
write the same results, up to the order of their sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tvm import relax, tirx

from moec.targets.cuda.block_dispatch import BlockDispatch
from moec.targets.cuda.crossovers import TokenRange, crossover_to, ranges_between, shape_of
from moec.targets.cuda.estimates import FEW_TOKENS, block_heights, few_tokens
from moec.targets.cuda.fitted_heights import fitted_heights
from moec.targets.cuda.kernels.grouped_gemm_mma import GROUPED_GEMM_MMA
from moec.targets.cuda.kernels.grouped_gemm_simt import GROUPED_GEMM_SIMT
from moec.targets.cuda.kernels.grouped_gemm_wgmma import GROUPED_GEMM_WGMMA
from moec.targets.cuda.kernels.grouped_gemv import GROUPED_GEMV
from moec.targets.cuda.kernels.grouped_problem import GroupedProblem
from moec.targets.cuda.kernels.round_rows import ROUND_OF_PAIRS, Rounding, round_blocks, round_pairs
from moec.targets.tvm.kernel import KernelCall
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.nodes import static_size

PRODUCTS = (GROUPED_GEMM_WGMMA, GROUPED_GEMM_MMA, GROUPED_GEMM_SIMT)
"""Kernels for blocks of rows."""
BLOCK_ROWS = (16, 64, 128)
"""Heights of blocks on tensor cores."""
_MOST_FEW_TOKENS = 128
"""What is tuned stays below: numbers of threads are 32 bits wide, and every pair reads all weights of its expert."""
_PLAIN_ROWS = 64
"""The height where a product runs without tensor cores, and where the number of experts per token is dynamic."""


@dataclasses.dataclass(frozen=True)
class Product:
    """A product of some of the experts, or of all: ``problem``, whatever the blocks, and the tensors of matrix and
    bias."""

    problem: GroupedProblem
    operands: Sequence[relax.Expr]


class GroupedProducts:
    """The products of one node, all over the same pairs. ``problems``: what they compute, whatever the blocks; ``ids``
    and ``weights``: experts and routing weights [T, k]; ``capacity``: the most pairs of an expert, 0 for no limit.

    All products go pair by pair for few tokens, or none: they hand on rows in one order.
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
        self._node, self._ids, self._weights = node, ids, weights
        has_few = all(GROUPED_GEMV.why_not(problem, node.machine) is None for problem in problems)
        slots = static_size(ids.ty.shape[1])
        on_tensor_cores = all(self._on_tensor_cores(problem) for problem in problems)
        heights = BLOCK_ROWS if on_tensor_cores else (_PLAIN_ROWS,)
        # At least 16 pairs of every expert, so that the results of few tokens have room too.
        served = tirx.min(self.pairs, experts * max(capacity, FEW_TOKENS)) if capacity else self.pairs
        expert_bytes = sum(problem.experts * problem.matrix_bytes for problem in problems) / experts
        few = few_tokens(experts, slots, expert_bytes) if on_tensor_cores else FEW_TOKENS
        largest = max(problem.matrix_bytes for problem in problems)
        estimates = block_heights(experts, slots, heights, few + 1 if has_few else 0, largest)
        if on_tensor_cores:
            plans = tuple(tuple(self._plan(problem, rows) for problem in problems) for rows, _ in estimates)
            estimates = fitted_heights(tuple(estimates), experts, slots, plans, node.machine)
        shape = shape_of(problems, slots)
        # The results of more tokens, pair by pair, might have no room where capacity limits those in blocks.
        most_few = FEW_TOKENS if capacity else _MOST_FEW_TOKENS
        crossovers = [
            crossover_to(f"blocks_of_{rows}", shape, node.machine, tokens.least, None if position else most_few + 1)
            for position, (rows, tokens) in enumerate(estimates)
            if has_few or position
        ]
        ranges = ranges_between(crossovers)
        self.few = ranges[0] if has_few else None
        """The numbers of tokens that go pair by pair; None where none do."""
        self.many = TokenRange(tuple(crossovers[:1])) if has_few else TokenRange()
        """All others."""
        dispatch = BlockDispatch(node, experts, ids, served)
        self._blocks = [
            dispatch.into_blocks(rows, estimate, tokens)
            for (rows, estimate), tokens in zip(estimates, ranges[-len(estimates) :], strict=True)
        ]

    @property
    def pairs(self) -> Any:
        """How many pairs there are."""
        return self._ids.ty.shape[0] * self._ids.ty.shape[1]

    @property
    def places(self) -> Any:
        """Rows of a tensor that holds the results of any tier in the order of its blocks."""
        highest = max(blocks.rows for blocks in self._blocks)
        return next(blocks.sorted_pairs.ty.shape[0] for blocks in self._blocks if blocks.rows == highest)

    def multiply(
        self,
        products: Sequence[Product],
        rows: relax.Expr,
        count: Any,
        epilogue: Callable[..., Any],
        activation: str = "none",
        *,
        few: bool = True,
    ) -> relax.Var:
        """The products of ``rows``, which together serve all experts; ``count`` rows in the result. Without ``few``,
        those that go pair by pair are left out."""
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
        self, product: Product, rows: relax.Expr, epilogue: Callable[..., Any], activation: str, *, few: bool
    ) -> Iterator[KernelCall]:
        """Every way that the product takes for some number of tokens."""
        problem, operands = product.problem, [rows, *product.operands, self._weights]
        weights = len(operands) - 1  # the parameter whose first size is the number of tokens
        if few and self.few is not None:
            function = self.few.limited(GROUPED_GEMV.build(problem, epilogue), weights)
            arguments = [*self.few.numbers(self._node.lowering), *operands, self._ids]
            attributes = _attributes(problem, activation, self.few)
            chosen = self._node.select((GROUPED_GEMV,), problem)
            yield KernelCall(chosen, function, arguments, attributes, self.few.names)
        for blocks in self._blocks:
            tiled = dataclasses.replace(problem, block_rows=blocks.rows)
            chosen, tokens = self._node.select(PRODUCTS, tiled), blocks.tokens
            function = tokens.limited(chosen.kernel.build(tiled, epilogue), weights)
            numbers = tokens.numbers(self._node.lowering)
            arguments = [*numbers, *operands, blocks.sorted_pairs, blocks.experts, blocks.count]
            attributes = _attributes(tiled, activation, tokens) | chosen.tile_of(tiled)
            yield KernelCall(chosen, function, arguments, attributes, tokens.names)

    def rounded(self, hidden: relax.Var, rounding: Rounding) -> relax.Var:
        """What the first product made, rounded; every way in the order of its rows."""
        width, dtype = rounding.out_type
        output = relax.TensorType((hidden.ty.shape[0], width), dtype)
        results: list[relax.Var] = []
        for tokens, function, arguments in self._roundings(rounding):
            given = [*tokens.numbers(self._node.lowering), self._ids, *arguments, hidden]
            attributes = {"group": rounding.group, "tokens": str(tokens)}
            chosen = self._node.select((ROUND_OF_PAIRS,), rounding)
            called = KernelCall(chosen, tokens.limited(function, 0), given, attributes, tokens.names)
            results = self._node.call_on(called, results) if results else self._node.call(called, [output])
        (result,) = results
        return result

    def _roundings(self, rounding: Rounding) -> Iterator[tuple[TokenRange, tirx.PrimFunc, list[relax.Expr]]]:
        if self.few is not None:
            yield self.few, round_pairs(rounding), []
        for blocks in self._blocks:
            yield blocks.tokens, round_blocks(rounding, blocks.rows), [blocks.sorted_pairs, blocks.count]

    def _plan(self, problem: GroupedProblem, rows: int) -> Any:
        """How the kernel for blocks of so many rows shares out its work."""
        return self._node.select(PRODUCTS, dataclasses.replace(problem, block_rows=rows)).plan

    def _on_tensor_cores(self, problem: GroupedProblem) -> bool:
        """Whether the best kernel for blocks of every height uses them."""
        tiled = (dataclasses.replace(problem, block_rows=rows) for rows in BLOCK_ROWS)
        return all(self._node.select(PRODUCTS, product).kernel is not GROUPED_GEMM_SIMT for product in tiled)


def _attributes(problem: GroupedProblem, activation: str, tokens: TokenRange) -> dict[str, Any]:
    """What the artifact says about a product."""
    return {**problem.facts(), "activation": activation, "tokens": str(tokens)}
