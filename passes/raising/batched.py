"""Batched experts: every token gathers the whole weights of its experts, then one batched product per projection.

Written by transformers 5 (``batched_mm``), and by hand for small models. Before::

    up_of_token = Gather <axis = 0> (up, ids)          # ids[T*k], up[E,2f,d]
    h = MatMul (up_of_token, x_of_token)
    ...
    y = ReduceSum (weighted)
"""

from __future__ import annotations

from collections.abc import Iterator

from moec.passes.raising.block import Block
from moec.passes.raising.chains import Chain
from moec.passes.raising.facts import follow_data
from moec.passes.raising.weights import Arrangement, arrangements


def propose(block: Block, chains: list[Chain]) -> Iterator[Arrangement] | None:
    """One chain whose weights are gathered by expert ids."""
    if len(chains) != 1 or not all(_is_gathered(block, chain) for chain in chains):
        return None
    return arrangements(block.facts, chains, block.E, block.d)


def _is_gathered(block: Block, chain: Chain) -> bool:
    selected = block.facts.dependents([block.logits], block.nodes)
    return any(
        operand in selected and follow_data(operand, lambda v: v is p.weight) is not None  # noqa: B023
        for p in chain.projections
        for operand in p.node.inputs
        if operand is not None
    )
