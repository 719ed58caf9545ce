"""Queries, keys and values that are products of latents, found by running the graph.

The norms that a row passes on its way from the tokens are those of latents; before each is a product of tokens. With
latents and tokens as independent sources, queries and values are found by :mod:`rows`. Keys are a product of latents
plus a product of tokens with the rotary embedding of queries. Since that embedding is known, it can be inverted.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.common.errors import UnsupportedError
from moec.common.names import node_name
from moec.targets.hls.attention.float_block import RotaryEmbedding
from moec.targets.hls.attention.latents import FloatLatents, Latent
from moec.targets.hls.attention.rows import (
    HeadRows,
    expect_close,
    find_rows,
    fixed_batch,
    fixed_tokens,
    lengths_probed,
    norms_between,
    run_to,
    whole_sequence,
)
from moec.targets.hls.graph.affine import affine_maps
from moec.targets.hls.graph.residuals import norm_of

Array = np.ndarray[Any, Any]

_AT_ONCE = 1 << 10
"""Unit vectors in one call."""
_NOTHING = 1e-6
"""Weights that are a smaller part of the largest one count as 0."""


@dataclasses.dataclass(frozen=True)
class LatentRows:
    """Rows of ``queries``, ``keys`` and ``values``, whose weights [H, h, ...] take the output of ``latents``."""

    latents: FloatLatents
    queries: HeadRows
    keys: HeadRows
    values: HeadRows


def find_latent_rows(
    model: ir.Model,
    tokens: ir.Value,
    rows: tuple[ir.Value, ir.Value, ir.Value],
    width: int,
    heads: tuple[int, int],
    positions: int,
) -> LatentRows:
    """The latents and rows of a block. ``tokens`` [B, T, width]: normalised; ``rows``: queries, keys and values before
    the scores; ``heads``: of queries, and of keys and values.

    Raises UnsupportedError, naming the value, where something else lies in between.
    """
    query, key, value = rows
    of_queries, of_keys, of_values = (norms_between(tokens, item) for item in rows)
    if len(of_queries) > 1 or len(of_keys) != 1 or of_values != of_keys or of_queries == of_keys:
        of_rows = [
            ", ".join(str(item.name) for item in latents) or "none" for latents in (of_queries, of_keys, of_values)
        ]
        raise UnsupportedError(
            f"queries come from the latents {of_rows[0]}, keys from {of_rows[1]}, values from {of_rows[2]}; "
            "expected one latent of keys and values, and at most another one of queries"
        )
    latents = [_latent(model, tokens, item, width) for item in (*of_keys, *of_queries)]
    latent, query_latent = latents[0], (latents[1:] or [None])[0]
    source, rank = (of_queries[0], latents[1].rank) if of_queries else (tokens, width)
    queries = find_rows(model, source, query, rank, heads[0], positions)
    values = find_rows(model, of_keys[0], value, latent.rank, heads[1], positions)
    keys, of_tokens = _keys(model, tokens, of_keys[0], key, (width, latent.rank), heads[1], queries, positions)
    return _beside_each_other(latent, query_latent, queries, keys, of_tokens, values)


def _latent(model: ir.Model, tokens: ir.Value, normal: ir.Value, width: int) -> Latent:
    node = normal.producer()
    assert node is not None and node.inputs[0] is not None
    if normal.shape is None or len(normal.shape) != 3:
        raise UnsupportedError(f"{node_name(node)}: normalises {normal.shape}; expected [batch, tokens, channels]")
    ((weights, bias),) = affine_maps(model, tokens, [node.inputs[0]], width)
    return Latent(weights, bias, norm_of(node))


def _keys(
    model: ir.Model,
    tokens: ir.Value,
    latent: ir.Value,
    key: ir.Value,
    widths: tuple[int, int],
    heads: int,
    queries: HeadRows,
    positions: int,
) -> tuple[HeadRows, Array]:
    """Keys before their rotary embedding: the rows with the weights [K, h, rank] of a latent, and the weights
    [K, h, width] of tokens. ``widths``: of tokens and of the latent."""
    width, rank = widths
    order = [*(queries.order or range(queries.weights.shape[1]))]

    probes = np.pad(np.eye(width + rank, dtype=np.float32), ((1, 0), (0, 0)))
    turned, places = _probed(model, tokens, latent, key, probes, heads)
    if turned.shape[2] != len(order):
        raise UnsupportedError(
            f"{key.name!r} has {turned.shape[2]} channels per head; expected {len(order)}, as queries have"
        )
    unrotated = _turned_back(queries.turns, turned[..., order], places)
    bias, weights = unrotated[0], (unrotated[1:] - unrotated[0]).transpose(1, 2, 0)
    keys = HeadRows(weights[..., width:], bias, None, queries.turns, queries.order)
    for count in lengths_probed(tokens, positions):
        size = (fixed_batch(tokens) or 1, count, width + rank)
        random = np.random.default_rng(5).normal(size=size).astype(np.float32)
        expected = np.einsum("btd,hcd->bhtc", random, weights, optimize=True) + bias[:, None]
        expected = expected if queries.turns is None else queries.turns.run(expected)
        expect_close(
            _keys_of(model, tokens, latent, key, random, heads)[..., order],
            expected,
            f"{key.name!r} is more than a product of latents {latent.name!r}, plus one of {tokens.name!r}, and the "
            f"rotary embedding of queries, in sequences of {count} tokens",
        )
    return keys, weights[..., :width]


def _probed(
    model: ir.Model, tokens: ir.Value, latent: ir.Value, key: ir.Value, probes: Array, heads: int
) -> tuple[Array, Array]:
    """Keys [N, K, h] of probes [N, tokens and latents], and the position [N] of each, in as many calls as the graph's
    sizes require."""
    count = fixed_tokens(tokens, 0) or 1
    batch = fixed_batch(tokens) or min(_AT_ONCE, -(-len(probes) // count))
    padded = np.pad(probes, ((0, -len(probes) % (batch * count)), (0, 0))).reshape(-1, batch, count, probes.shape[1])
    parts = [_keys_of(model, tokens, latent, key, sequences, heads).swapaxes(1, 2) for sequences in padded]
    rows = np.concatenate(parts)
    places = np.arange(len(padded) * batch * count) % count
    return rows.reshape(-1, *rows.shape[2:])[: len(probes)], places[: len(probes)]


def _keys_of(model: ir.Model, tokens: ir.Value, latent: ir.Value, key: ir.Value, sequences: Array, heads: int) -> Array:
    """Keys [B, K, T, h] of whole sequences [B, T, tokens and latents]."""
    batch, count, _ = sequences.shape
    width = tokens.shape[2] if tokens.shape is not None else 0
    feeds = whole_sequence(model, [tokens, latent], key, batch, count)
    (keys,) = run_to(model, {**feeds, tokens: sequences[..., :width], latent: sequences[..., width:]}, key)
    return keys if keys.ndim == 4 else keys.reshape(batch, count, heads, -1).swapaxes(1, 2)


def _turned_back(turns: RotaryEmbedding | None, rows: Array, places: Array) -> Array:
    """Rows [N, K, h] at positions [N] before their rotary embedding: its inverse."""
    if turns is None:
        return rows
    cosines, sines = turns.cosines[places][:, None], turns.sines[places][:, None]
    even, odd = rows[..., 0::2], rows[..., 1::2]
    before = np.stack([even * cosines + odd * sines, odd * cosines - even * sines], axis=-1)
    return (before / (cosines**2 + sines**2)[..., None]).reshape(rows.shape).astype(np.float32)


def _beside_each_other(
    latent: Latent, query_latent: Latent | None, queries: HeadRows, keys: HeadRows, of_tokens: Array, values: HeadRows
) -> LatentRows:
    """The latents, and rows whose weights cover all inputs that any row takes. If all heads' keys take the same product
    of tokens, it becomes the shared channels, a latent without a norm; else keys take tokens themselves."""
    used = np.abs(of_tokens).max(axis=(0, 2)) > _NOTHING * np.abs(of_tokens).max()
    is_shared = bool(used.any()) and np.allclose(of_tokens, of_tokens[:1], atol=1e-6)
    shared = Latent(of_tokens[0, used], np.zeros(used.sum(), np.float32)) if is_shared else None
    takes_tokens = query_latent is None or bool(used.any() and not is_shared)
    latents = FloatLatents(latent, query_latent, shared, takes_tokens)
    shape = latents.shape
    sizes = {"tokens": of_tokens.shape[2] * takes_tokens, "queries": shape.queries, "keys": shape.keys}
    sizes["shared"] = shape.shared

    def wide(rows: HeadRows, **parts: Array) -> HeadRows:
        blanks = {name: np.zeros((*rows.weights.shape[:2], size), np.float32) for name, size in sizes.items()}
        return dataclasses.replace(rows, weights=np.concatenate([*(blanks | parts).values()], axis=2))

    of_shared = np.broadcast_to(np.eye(len(used), dtype=np.float32)[:, used], (len(of_tokens), len(used), used.sum()))
    other_inputs = {"shared": of_shared} if is_shared else {"tokens": of_tokens} if takes_tokens else {}
    return LatentRows(
        latents,
        wide(queries, **{"tokens" if query_latent is None else "queries": queries.weights}),
        wide(keys, keys=keys.weights, **other_inputs),
        wide(values, keys=values.weights),
    )
