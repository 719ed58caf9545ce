"""Linear attention: a recurrence over tokens, whose state is cached."""

from __future__ import annotations

from typing import Literal

import onnx_ir as ir

from moec.frontend.gguf.graph.builder import BATCH, Builder

HeadOrder = Literal["grouped", "tiled"]
"""Which heads share a query and key: neighbours, or those that are a number of key heads away."""


def linear_attention(
    build: Builder,
    layer: int,
    operands: tuple[ir.Value, ir.Value, ir.Value],
    decay: ir.Value,
    beta: ir.Value | None,
    sizes: tuple[int, int, int],
    scale: float,
) -> ir.Value:
    """Apply the gated rule to queries, keys [B,S,H*K] and values [B,S,H*V], or the gated delta rule where there is a
    ``beta`` [B,S,H]. ``decay`` [B,S,H] is a logarithm. ``sizes``: H, K and V. Returns [B,S,H*V]."""
    write, (heads, key_size, value_size) = build.write, sizes
    past = build.past("state", layer, (BATCH, heads, key_size, value_size)) if build.with_cache else None
    inputs = [*operands, past, decay, *([] if beta is None else [beta])]
    attributes = {
        "q_num_heads": heads,
        "kv_num_heads": heads,
        "update_rule": "gated" if beta is None else "gated_delta",
        "scale": scale,
    }
    node = ir.node("LinearAttention", inputs, attributes=attributes, num_outputs=2)
    result, state = write.add(node, f"blk.{layer}.ssm_attention", f"blk.{layer}.ssm_state")
    if build.with_cache:
        build.keep("state", layer, state)
    return result


def shared_by_heads(build: Builder, apart: ir.Value, repeats: int, order: HeadOrder, label: str) -> ir.Value:
    """Repeat each query or key of [B,S,h,K] for the heads that share it, and join them: [B,S,h*repeats*K]."""
    write = build.write
    if repeats > 1:
        axis, shape = (3, (1, 1, 1, repeats, 1)) if order == "grouped" else (2, (1, 1, repeats, 1, 1))
        apart = write.op("Expand", write.op("Unsqueeze", apart, write.numbers(axis)), write.numbers(*shape))
        return write.reshape(write.reshape(apart, 0, 0, 0, -1), 0, 0, -1, label=label)
    return write.reshape(apart, 0, 0, -1, label=label)
