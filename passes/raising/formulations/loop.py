"""Expert loops, unrolled by the exporter: each expert gathers its tokens, computes them and scatters them back.

Written by TorchScript exports of transformers 4, by optimum, and by dynamo where a model loops over its experts::

    tokens0 = NonZero (one_hot_of_expert_0)
    rows0 = Gather (x, tokens0)
    y0 = MatMul (act (MatMul (rows0, up0)), down0)
    y = ScatterND <reduction = "add"> (y_so_far, tokens0, Mul (y0, w0))

ScatterElements on zeros with an Add, or gathering, adding and scattering back, stand for the same: the tokens of one
expert are all different. Where the sizes of one trace were baked into such a loop, raising repairs it.
"""

from __future__ import annotations

from moec.passes.raising.block import Block
from moec.passes.raising.mlps import Mlp, selected_operands


def matches(block: Block, mlps: list[Mlp]) -> bool:
    """One MLP per expert, fed with rows that the router selects."""
    return len(mlps) > 1 and all(selected_operands(block, mlp) for mlp in mlps)
