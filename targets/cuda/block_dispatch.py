"""Dispatch as a node of the graph needs it: in one launch up to :data:`ONE_LAUNCH_TOKENS` tokens, in three beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tvm import relax, tirx

from moec.targets.cuda.kernels.dispatch import dispatch, most_blocks
from moec.targets.cuda.kernels.dispatch_many import chunks_for, count_pairs, place_chunks, scatter_pairs
from moec.targets.cuda.launch_conditions import NO_LIMIT, launch_if
from moec.targets.cuda.moe_kernels import COUNT_PAIRS, DISPATCH, PLACE_CHUNKS, SCATTER_PAIRS
from moec.targets.tvm.node_lowering import NodeLowering
from moec.targets.tvm.selection import Selection

ONE_LAUNCH_TOKENS = 4096
"""Up to so many, one block of threads sorts their pairs in less time than two more launches take."""
_FILLED = 0.75
"""Blocks are taken so high that an expert with the average number of rows fills this much of one."""


@dataclasses.dataclass(frozen=True)
class Tier:
    """Numbers of tokens, from ``least`` to ``most``, whose pairs are sorted into blocks of ``rows``."""

    rows: int
    least: int
    most: int

    @property
    def tokens(self) -> str:
        """The numbers, in words."""
        return f"from {self.least}" if self.most == NO_LIMIT else f"{self.least} to {self.most}"


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
    """The results of dispatch for a tier."""

    tier: Tier
    sorted_pairs: relax.Var
    experts: relax.Var
    count: relax.Var


def dispatch_blocks(node: NodeLowering, experts: int, ids: relax.Expr, pairs: Any, tier: Tier) -> Blocks:
    """The pairs of ``ids`` [T, k] in blocks; at most ``pairs`` of them, an int64 expression, have an expert."""
    blocks = most_blocks(experts, pairs, tier.rows)
    outputs = [relax.TensorType((size,), "int32") for size in (blocks * tier.rows, blocks, 1)]
    if tier.most <= ONE_LAUNCH_TOKENS:
        return Blocks(tier, *node.call(*_in_one_launch(node, experts, ids, tier), outputs, _attributes(experts, tier)))
    many = dataclasses.replace(tier, least=max(tier.least, ONE_LAUNCH_TOKENS + 1))
    results = _in_three_launches(node, experts, ids, many, outputs)
    if tier.least <= ONE_LAUNCH_TOKENS:
        few = dataclasses.replace(tier, most=ONE_LAUNCH_TOKENS)
        results = node.call_on_all(*_in_one_launch(node, experts, ids, few), results, _attributes(experts, few))
    return Blocks(tier, *results)


def _in_one_launch(
    node: NodeLowering, experts: int, ids: relax.Expr, tier: Tier
) -> tuple[Selection, tirx.PrimFunc, list[relax.Expr]]:
    """What to call."""
    kernel = launch_if(dispatch(experts, tier.rows), 0, 0, least=tier.least, most=tier.most)
    return node.select(DISPATCH, experts), kernel, [ids]


def _in_three_launches(
    node: NodeLowering, experts: int, ids: relax.Expr, tier: Tier, outputs: Sequence[relax.TensorType]
) -> list[relax.Var]:
    def limited(kernel: tirx.PrimFunc) -> tirx.PrimFunc:
        return launch_if(kernel, 0, 0, least=tier.least, most=tier.most)

    attributes = _attributes(experts, tier)
    table = relax.TensorType((chunks_for(ids.ty.shape[0] * ids.ty.shape[1]), experts), "int32")
    kernel = limited(count_pairs(experts))
    (counts,) = node.call(node.select(COUNT_PAIRS, experts), kernel, [ids], [table], attributes)
    kernel = limited(place_chunks(experts, tier.rows))
    chosen = node.select(PLACE_CHUNKS, experts)
    starts, padded, *others = node.call(chosen, kernel, [ids, counts], [table, *outputs], attributes)
    kernel = limited(scatter_pairs(experts))
    sorted_pairs = node.call_on(node.select(SCATTER_PAIRS, experts), kernel, [ids, starts], padded, attributes)
    return [sorted_pairs, *others]


def _attributes(experts: int, tier: Tier) -> dict[str, Any]:
    return {"experts": experts, "block_rows": tier.rows, "tokens": tier.tokens}
