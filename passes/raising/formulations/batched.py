"""Batched experts: every token gathers the whole weights of its experts, then one batched product per projection.

Written by transformers 5 (``batched_mm``), and by hand for small models::

    up_of_pair = Gather <axis = 0> (up, ids)           # ids [T*k], up [E,2f,d]
    h = MatMul (up_of_pair, x_of_pair)
    ...
    y = ReduceSum (weighted)
"""

from __future__ import annotations

from moec.passes.raising.block import Block
from moec.passes.raising.mlps import Mlp, selected_operands


def matches(block: Block, mlps: list[Mlp]) -> bool:
    """One MLP whose weights are gathered by the router's selection."""
    return len(mlps) == 1 and selected_operands(block, mlps[0])
