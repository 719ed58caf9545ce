"""The smallest language model with what a pipeline by layers divides: attention with states, and MoE blocks."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from tests.passes.before_after import model_of

_ATTENTION = """
    n{i} = RMSNormalization <axis = -1> (x{i}, scale) k{i} = MatMul (n{i}, wide{i})
    a{i}, keys{i}, values{i} = Attention <is_causal = 1, q_num_heads = 1, kv_num_heads = 1>
        (n{i}, k{i}, n{i}, "", past_keys{i}, past_values{i})
    h{i} = Add (x{i}, a{i})
"""
_EXPERTS = """
    rows{i} = Reshape (h{i}, flat) scores{i} = MatMul (rows{i}, router)
    y{i} = moec.MoE <activation = "relu", k = 2> (rows{i}, scores{i}, "", up, down{i})
    size{i} = Shape (h{i}) tokens{i} = Reshape (y{i}, size{i}) x{next} = Add (h{i}, tokens{i})
"""
_DENSE = """
    up{i} = MatMul (h{i}, out{i}) y{i} = Relu (up{i}) x{next} = Add (h{i}, y{i})
"""


def pipelined_model(layers: int = 2, dense: Collection[int] = (), passes_stages: bool = False) -> ir.Model:
    """Make a language model whose layers have weights of their own and weights that they share. Layers in ``dense``
    have no experts. ``passes_stages``: whether the end reads a value of the first layer, too."""
    pasts = [f"past_{kind}{i}" for i in range(layers) for kind in ("keys", "values")]
    inputs = ", ".join(["int64[B,S] ids", *(f"float[B,1,P,4] {name}" for name in pasts)])
    outputs = ", ".join(f"float[B,1,R,4] {name.removeprefix('past_')}" for name in pasts)
    last = {i: f"float[4,4] out{i}" if i in dense else f"float[3,4,2] down{i}" for i in range(layers)}
    own = ", ".join(f"float[4,4] wide{i}, {last[i]}" for i in range(layers))
    steps = "".join((_ATTENTION + (_DENSE if i in dense else _EXPERTS)).format(i=i, next=i + 1) for i in range(layers))
    end = f"end = Add (x{layers}, h0)" if passes_stages else f"end = Identity (x{layers})"
    return model_of(f"""({inputs}) => (float[B,S,9] logits, {outputs})
        <float[9,4] words, float[4] scale, float[4,3] router, float[3,4,4] up, float[4,9] table,
         int64[2] flat = {{-1, 4}}, {own}> {{
        x0 = Gather (words, ids) {steps} {end} logits = MatMul (end, table) }}""")
