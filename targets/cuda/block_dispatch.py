"""Dispatch as a node of the graph needs it: in one launch up to some number of tokens, in three beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx

from moec.targets.cuda.crossovers import TokenRange, add_crossover, per_token
from moec.targets.cuda.kernels.dispatch import dispatch, most_blocks
from moec.targets.cuda.kernels.dispatch_many import chunks_for, count_pairs, place_chunks, scatter_pairs
from moec.targets.cuda.launch_conditions import NO_LIMIT
from moec.targets.cuda.moe_kernels import COUNT_PAIRS, DISPATCH, PLACE_CHUNKS, SCATTER_PAIRS
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.nodes import static_size
from moec.targets.tvm.selection import Selection

ONE_LAUNCH_TOKENS = 4096
"""Up to about so many, one block of threads sorts their pairs in less time than two more launches take."""
_FILLED = 0.75
"""Blocks are taken so high that an expert with the average number of rows fills this much of one."""


@dataclasses.dataclass(frozen=True)
class Tier:
    """Numbers of tokens, from ``least`` to ``most``, for which blocks of ``rows`` are best: an estimate."""

    rows: int
    least: int
    most: int


def tiers_for(experts: int, slots: int | None, heights: Sequence[int], least: int) -> list[Tier]:
    """Tiers for all numbers of tokens from ``least`` on, lowest blocks first."""
    if slots is None or len(heights) == 1:
        return [Tier(heights[-1], least, NO_LIMIT)]
    tiers = []
    for rows, higher in zip(heights, [*heights[1:], None], strict=True):
        most = NO_LIMIT if higher is None else int(_FILLED * higher * experts / slots)
        if most >= least:
            tiers.append(Tier(rows, least, most))
            least = most + 1
    return tiers


@dataclasses.dataclass(frozen=True)
class Blocks:
    """The results of dispatch into blocks of ``rows``, which are there for some numbers of ``tokens``."""

    rows: int
    tokens: TokenRange
    sorted_pairs: relax.Var
    experts: relax.Var
    count: relax.Var


class BlockDispatch:
    """Dispatch of one node: the pairs of ``ids`` [T, k] to ``experts``; at most ``pairs`` of them, an int64 expression,
    have one."""

    def __init__(self, node: NodeLowering, experts: int, ids: relax.Expr, pairs: Any) -> None:
        self._node, self._experts, self._ids, self._pairs = node, experts, ids, pairs

    def into_blocks(self, tier: Tier, tokens: TokenRange) -> Blocks:
        """Dispatch for ``tokens``, of which ``tier`` is the estimate."""
        blocks = most_blocks(self._experts, self._pairs, tier.rows)
        outputs = [relax.TensorType((size,), "int32") for size in (blocks * tier.rows, blocks, 1)]
        if tier.most <= ONE_LAUNCH_TOKENS:
            chosen, kernel, arguments, attributes = self._in_one_launch(tier.rows, tokens)
            return Blocks(tier.rows, tokens, *self._node.call(chosen, kernel, arguments, outputs, attributes))
        if tier.least > ONE_LAUNCH_TOKENS:
            return Blocks(tier.rows, tokens, *self._in_three_launches(tier.rows, tokens, outputs))
        shape = f"{self._experts}.{per_token(static_size(self._ids.ty.shape[1]))}"
        crossover = add_crossover(self._node, shape, "three_launches", ONE_LAUNCH_TOKENS + 1)
        results = self._in_three_launches(tier.rows, tokens.reaching(crossover), outputs)
        chosen, kernel, arguments, attributes = self._in_one_launch(tier.rows, tokens.missing(crossover))
        results = self._node.call_on_all(chosen, kernel, arguments, results, attributes)
        return Blocks(tier.rows, tokens, *results)

    def _in_one_launch(
        self, rows: int, tokens: TokenRange
    ) -> tuple[Selection, tirx.PrimFunc, list[relax.Expr], dict[str, Any]]:
        """What to call."""
        kernel = tokens.limited(dispatch(self._experts, rows), 0)
        chosen = self._node.select(DISPATCH, self._experts)
        return chosen, kernel, [*tokens.numbers, self._ids], self._attributes(rows, tokens)

    def _in_three_launches(self, rows: int, tokens: TokenRange, outputs: Sequence[relax.TensorType]) -> list[relax.Var]:
        node, experts, ids, numbers = self._node, self._experts, self._ids, tokens.numbers
        attributes = self._attributes(rows, tokens)
        table = relax.TensorType((chunks_for(ids.ty.shape[0] * ids.ty.shape[1]), experts), "int32")
        kernel = tokens.limited(count_pairs(experts), 0)
        (counts,) = node.call(node.select(COUNT_PAIRS, experts), kernel, [*numbers, ids], [table], attributes)
        kernel = tokens.limited(place_chunks(experts, rows), 0)
        chosen = node.select(PLACE_CHUNKS, experts)
        starts, padded, *others = node.call(chosen, kernel, [*numbers, ids, counts], [table, *outputs], attributes)
        kernel = tokens.limited(scatter_pairs(experts), 0)
        chosen = node.select(SCATTER_PAIRS, experts)
        sorted_pairs = node.call_on(chosen, kernel, [*numbers, ids, starts], padded, attributes)
        return [sorted_pairs, *others]

    def _attributes(self, rows: int, tokens: TokenRange) -> dict[str, Any]:
        return {"experts": self._experts, "block_rows": rows, **tokens.attributes}
