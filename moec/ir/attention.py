"""ONNX's ``Attention`` in plain numpy, for every mask that broadcasts.

``onnx.reference`` takes the number of queries for the causal mask from the given mask, where that may be 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    lengths: Array | None = None,
    *,
    is_causal: int = 0,
    q_num_heads: int = 0,
    kv_num_heads: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    **others: Any,
) -> tuple[Array, Array, Array]:
    """Compute attention; return the output and all keys and values, past ones first.

    ``lengths`` [B] (``nonpad_kv_seqlen``) is the number of keys of each sequence that exist. Arithmetic is at least in
    float32. The output of a query that sees no key is zero. Raises NotImplementedError for ``qk_matmul_output_mode``.
    """
    if others.get("qk_matmul_output_mode"):
        raise NotImplementedError("Attention: the output qk_matmul_output is not supported")
    is_flat = query.ndim == 3
    if is_flat:
        query, key, value = heads(query, q_num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)
    if past_key is not None and past_value is not None:
        key, value = np.concatenate([past_key, key], axis=2), np.concatenate([past_value, value], axis=2)
    past = 0 if past_key is None else past_key.shape[2]
    visible = _visible(query, key, bool(is_causal), past, lengths)
    y = _attend(query, key, value, visible, mask, query.shape[3] ** -0.5 if scale is None else scale, softcap)
    if is_flat:
        y = np.swapaxes(y, 1, 2).reshape(y.shape[0], y.shape[2], -1)
    return y, key, value


def heads(x: Array, count: int) -> Array:
    """Split columns into heads: [B,S,count*h] → [B,count,S,h]."""
    B, S, width = x.shape
    return np.swapaxes(x.reshape(B, S, count, width // count), 1, 2)


def _visible(query: Array, keys: Array, is_causal: bool, past: int, lengths: Array | None) -> Array:
    """Visibility [B|1,1,S,L] of each key to each query: the key exists, and is not after the place of a causal query.
    The last query stands at the last key."""
    S, L = query.shape[2], keys.shape[2]
    first = np.array([past]) if lengths is None else lengths.ravel() - S
    count = np.array([L]) if lengths is None else lengths.ravel()
    columns = np.arange(L)[None, None, None, :]
    visible = np.broadcast_to(columns < count[:, None, None, None], (len(count), 1, S, L))
    if is_causal:
        visible = visible & (columns <= first[:, None, None, None] + np.arange(S)[None, None, :, None])
    return visible


def _attend(
    query: Array, keys: Array, values: Array, visible: Array, mask: Array | None, scale: float, softcap: float
) -> Array:
    wide = np.promote_types(np.float32, query.dtype) if query.dtype.itemsize > 2 else np.dtype(np.float32)
    repeats = query.shape[1] // max(keys.shape[1], 1)
    q, k, v = query.astype(wide), *(np.repeat(x.astype(wide), repeats, axis=1) for x in (keys, values))
    scores = q @ np.swapaxes(k, 2, 3) * wide.type(scale)
    if softcap:
        scores = np.tanh(scores / wide.type(softcap)) * wide.type(softcap)
    if mask is not None:
        columns = mask.shape[-1] if mask.shape[-1] > 1 else scores.shape[-1]
        visible = visible & (np.arange(scores.shape[-1]) < columns)
        mask = np.concatenate([mask, np.zeros((*mask.shape[:-1], scores.shape[-1] - columns), mask.dtype)], axis=-1)
        if mask.dtype == np.bool_:
            visible = visible & mask
        else:
            scores = scores + mask.astype(wide)
    scores = np.where(visible, scores, -np.inf)
    largest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(scores - np.where(np.isneginf(largest), 0, largest))
    total = exponentials.sum(axis=-1, keepdims=True)
    return (exponentials / np.where(total == 0, 1, total) @ v).astype(query.dtype)
