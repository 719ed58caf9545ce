"""Dense experts: every expert computes every token, and a mask or mostly-zero weights pick the results.

Two spellings. Stacked: one Einsum or broadcast MatMul per projection with weights [E,...]. Unrolled: a copy of the
expert per id, each weighted by its column of the weights::

    y0 = Gemm (Relu (Gemm (x, up0)), down0)            # and so on for every expert
    w0 = Slice (weights_of_all_experts)                # or ReduceSum (w * (ids == 0))
    y = Add (Mul (y0, w0), Mul (y1, w1))
"""

from __future__ import annotations

from moec.passes.raising.block import Block
from moec.passes.raising.mlps import Mlp, selected_operands


def matches(block: Block, mlps: list[Mlp]) -> bool:
    """MLPs that nothing the router selects enters."""
    return not any(selected_operands(block, mlp) for mlp in mlps)
