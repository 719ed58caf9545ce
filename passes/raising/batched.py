"""Batched experts: every token gathers the whole weights of its experts, then one batched product per projection.

Written by transformers 5 (``batched_mm``), and by hand for small models::

    up_of_pair = Gather <axis = 0> (up, ids)           # ids [T*k], up [E,2f,d]
    h = MatMul (up_of_pair, x_of_pair)
    ...
    y = ReduceSum (weighted)
"""

from __future__ import annotations

from collections.abc import Iterator

from moec.passes.raising.block import Block
from moec.passes.raising.chains import Chain, selected_operands
from moec.passes.raising.weights import Arrangement, arrangements


def propose(block: Block, chains: list[Chain]) -> Iterator[Arrangement] | None:
    """One chain whose weights are gathered by what the router selects."""
    if len(chains) != 1 or not selected_operands(block, chains[0]):
        return None
    return arrangements(block.facts, chains, block.E, block.d)
