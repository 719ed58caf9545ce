"""``com.microsoft.GroupQueryAttention``: causal attention with a cache, as onnxruntime-genai models use it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.ir.attention import heads

Array = np.ndarray[Any, Any]


def _rotate(x: Array, cosine: Array, sine: Array, positions: Array, interleaved: int) -> Array:
    """Rotary embedding of x [heads, S, h] at the positions [S]; only the first 2 * columns of the caches rotate."""
    cosine, sine = cosine[positions].astype(x.dtype), sine[positions].astype(x.dtype)
    half = cosine.shape[1]
    rotated, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (rotated[..., 0::2], rotated[..., 1::2]) if interleaved else np.split(rotated, 2, axis=-1)
    halves = (first * cosine - second * sine, second * cosine + first * sine)
    joined = np.stack(halves, axis=-1).reshape(rotated.shape) if interleaved else np.concatenate(halves, axis=-1)
    return np.concatenate([joined, rest], axis=-1)


def _attend(
    query: Array, keys: Array, values: Array, past: int, scale: float, window: int, sink: Array | None
) -> Array:
    """One sequence: query [H,S,h] from position ``past`` on, keys and values [H,L,h]; ``sink`` [H] adds to the sum."""
    scores = query @ np.swapaxes(keys, 1, 2) * scale
    position = past + np.arange(query.shape[1])[:, None]
    key_position = np.arange(keys.shape[1])[None, :]
    hidden = key_position > position
    if window > 0:
        hidden |= key_position <= position - window
    scores = np.where(hidden, -np.inf, scores)
    extra = np.full((len(scores), 1, 1), -np.inf, scores.dtype) if sink is None else sink[:, None, None]
    largest = np.maximum(scores.max(axis=2, keepdims=True), extra)
    exponentials = np.exp(scores - largest)
    return exponentials / (exponentials.sum(axis=2, keepdims=True) + np.exp(extra - largest)) @ values


def group_query_attention(
    query: Array,
    key: Array | None,
    value: Array | None,
    past_key: Array | None,
    past_value: Array | None,
    last_positions: Array,
    total_length: Array,
    cos_cache: Array | None = None,
    sin_cache: Array | None = None,
    position_ids: Array | None = None,
    attention_bias: Array | None = None,
    head_sink: Array | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    local_window_size: int = -1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    softcap: float = 0.0,
    smooth_softmax: int = 0,
    sliding_window_cache: int = 0,
) -> tuple[Array, Array, Array]:
    """Output [B,S,H*h] and the caches [B,Hkv,L,h], to which the new keys and values are appended.

    query is [B,S,H*h], or holds keys and values too ([B,S,(H+2*Hkv)*h]) where these are absent. ``last_positions`` [B]
    is the length of each sequence, minus one. Keys of a padded sequence that lie beyond it are never attended. The
    caches hold all tokens, of a ``sliding_window_cache`` too.
    """
    if position_ids is not None or attention_bias is not None or softcap or smooth_softmax:
        raise NotImplementedError(
            "com.microsoft.GroupQueryAttention: no support for position_ids, attention_bias, softcap, smooth_softmax"
        )
    query, key, value = _split(query, key, value, num_heads, kv_num_heads)
    B, _, S, h = query.shape
    total = int(total_length.item())
    length = max(total, 0 if past_key is None else past_key.shape[2])
    pasts = [0 if total == S else int(last) + 1 - S for last in last_positions.ravel()]
    keys, values = (_cache(past, pasts, (B, kv_num_heads, length, h), query.dtype) for past in (past_key, past_value))
    outputs = np.zeros_like(query)
    repeats = num_heads // kv_num_heads
    for b, past in enumerate(pasts):
        q, k = query[b], key[b]
        if do_rotary and cos_cache is not None and sin_cache is not None:
            positions = past + np.arange(S)
            q, k = (_rotate(x, cos_cache, sin_cache, positions, rotary_interleaved) for x in (q, k))
        keys[b, :, past : past + S], values[b, :, past : past + S] = k, value[b]
        k, v = np.repeat(keys[b], repeats, axis=0), np.repeat(values[b], repeats, axis=0)
        outputs[b] = _attend(q, k, v, past, scale or h**-0.5, local_window_size, head_sink)
    return np.swapaxes(outputs, 1, 2).reshape(B, S, num_heads * h), keys, values


def _split(
    query: Array, key: Array | None, value: Array | None, num_heads: int, kv_num_heads: int
) -> tuple[Array, Array, Array]:
    """Query [B,H,S,h], keys and values [B,Hkv,S,h]; all three from ``query`` where it holds them side by side."""
    if key is None or value is None:
        h = query.shape[2] // (num_heads + 2 * kv_num_heads)
        query, key, value = np.split(query, [num_heads * h, (num_heads + kv_num_heads) * h], axis=2)
    return heads(query, num_heads), heads(key, kv_num_heads), heads(value, kv_num_heads)


def _cache(past: Array | None, lengths: list[int], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """A cache [B,Hkv,L,h] with the ``lengths[b]`` past entries of each sequence b, followed by zeros."""
    cache = np.zeros(shape, dtype)
    if past is not None:
        for b, length in enumerate(lengths):
            cache[b, :, :length] = past[b, :, :length]
    return cache
