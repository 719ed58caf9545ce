"""LinearAttention, which ONNX has since opset 27, and onnxruntime under the same name: a recurrence over tokens."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from moec.ir.semantics import compute_dtype

Array = np.ndarray[Any, Any]


def linear_attention(
    query: Array,
    key: Array,
    value: Array,
    past_state: Array | None = None,
    decay: Array | None = None,
    beta: Array | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
    chunk_size: int = 64,
) -> tuple[Array, Array]:
    """``query`` [B,T,Q*K], ``key`` [B,T,H*K], ``value`` [B,T,H*V], ``past_state`` [B,H,K,V], zeros by default; the
    logarithm of the ``decay`` [B,T,H] or [B,T,H*K], ``beta`` [B,T,H] or [B,T,1]. Returns [B,T,Q*V], of which Q / H
    neighbouring heads read one state, and the state after the last token. Computed in float32 at least. As in
    onnxruntime's operator, queries and keys may have fewer heads than H, of which neighbouring ones then share one.

    Token by token ``S = exp(decay) S``, if the rule is gated, then ``S = S + k (beta (v - S^T k))^T``, or ``S + k v^T``
    where it is no delta rule, and ``scale S^T q`` is the result.
    """
    wide = compute_dtype(query.dtype)
    queries, values = _heads(query, q_num_heads, wide), _heads(value, kv_num_heads, wide)
    keys = _heads(key, key.shape[2] // queries.shape[-1], wide)
    keys = np.repeat(keys, kv_num_heads // keys.shape[2], axis=2)
    if q_num_heads < kv_num_heads:
        queries, q_num_heads = np.repeat(queries, kv_num_heads // q_num_heads, axis=2), kv_num_heads
    batch, tokens, heads, size = keys.shape
    shape = (batch, heads, size, values.shape[-1])
    state = np.zeros(shape, wide) if past_state is None else past_state.astype(wide)
    kept = np.exp(_heads(decay, heads, wide)) if decay is not None and "gated" in update_rule else None
    rate = beta.astype(wide) if beta is not None and "delta" in update_rule else None
    factor = wide.type(scale or 1 / math.sqrt(size))
    result = np.empty((batch, tokens, q_num_heads, shape[-1]), wide)
    for token in range(tokens):
        if kept is not None:
            state = state * kept[:, token, :, :, None]
        new, of_key = values[:, token], keys[:, token, :, :, None]
        if rate is not None:
            new = (new - (state * of_key).sum(axis=2)) * rate[:, token, :, None]
        state = state + of_key * new[:, :, None, :]
        read = np.repeat(state, q_num_heads // heads, axis=1)
        result[:, token] = (read * queries[:, token, :, :, None]).sum(axis=2) * factor
    after = state.astype(query.dtype if past_state is None else past_state.dtype)
    return result.reshape(batch, tokens, q_num_heads * shape[-1]).astype(query.dtype), after


def _heads(rows: Array, heads: int, dtype: np.dtype[Any]) -> Array:
    """[B,T,heads*n] as [B,T,heads,n]."""
    return rows.reshape(*rows.shape[:2], heads, rows.shape[2] // heads).astype(dtype)
