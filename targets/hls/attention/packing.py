"""Packing of an attention layer's weights, in the order in which the hardware reads them.

| file | contents |
|---|---|
| ``up.bin`` | tiles of keys, values and queries in the order of computation: parameters of rows, then weights by step |
| | before these, if rows are products of latents: multipliers of norms, then tiles of latents of the same form |
| ``down.bin`` | by head the weights of the output product by step; then the parameters of its results |
| ``turns.bin`` | if keys and queries have rotary embeddings: sinks, then rows of int16, see ``library/moec_turn.h`` |
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.common.errors import DefectError
from moec.targets.hls.attention.latents import QuantizedLatents
from moec.targets.hls.attention.quantize import QuantizedAttention, QuantizedTurns, sink_places
from moec.targets.hls.design.attention import VALUE, AttentionDesign, AttentionShape
from moec.targets.hls.design.numbers import BEAT_BYTES, padded
from moec.targets.hls.moe import packing

Array = np.ndarray[Any, Any]

_ALONE = 3
"""Tokens of the testbench that come one by one, as when text is generated."""


def calls_of(shape: AttentionShape, tokens: int) -> list[int]:
    """The number of a sequence's tokens in each call of the testbench. Without a cache, one call has all; with one, one
    or two calls have as many as fit, and the last tokens come one by one."""
    if not shape.cached:
        return [tokens]
    tokens = min(tokens, shape.cached)
    alone = min(_ALONE, tokens)
    first = min(shape.tokens, tokens - alone)
    second = min(shape.tokens, tokens - alone - first)
    return [count for count in (first, second, *[1] * alone) if count] or [0]


def pack_projections(design: AttentionDesign, block: QuantizedAttention) -> bytes:
    """The contents of ``up.bin``."""
    shape, height = design.shape, design.head_width
    parts = [] if block.latents is None else [_pack_latents(design, block.latents)]

    def tiles(rows: Array) -> Array:
        """Rows by tile, [tiles h, ...] → [tiles, h, ...], with h padded."""
        return packing.widened(rows.reshape(shape.tiles, shape.head_width, *rows.shape[1:]), height, axis=1)

    weights = tiles(_padded_rows(design, block.up.weights[0]))
    biases, multipliers = tiles(block.up.biases[0]), tiles(block.up.multipliers.values[0])
    for tile, part in zip(_order_of_tiles(shape), shape.parts_of_tiles(), strict=True):
        steps = design.steps_of(part)
        taken = weights[tile][:, steps.start * design.lanes : steps.stop * design.lanes]
        if np.count_nonzero(taken) < np.count_nonzero(weights[tile]):
            raise DefectError(f"tile {tile} takes more than steps {steps} of what rows are products of")
        parts.append(packing.parameter_records(biases[tile], multipliers[tile]))
        parts.append(packing.steps_of(taken, design.lanes, design.lanes))
    return b"".join(parts)


def _padded_rows(design: AttentionDesign, weights: Array) -> Array:
    """Weights [rows, tokens and latents] with the columns of tokens and of each latent padded to whole chunks."""
    latents = design.shape.latents
    if latents is None:
        return packing.widened(weights, design.width, axis=1)
    widths = [*([design.shape.width] if latents.tokens else []), *latents.ranks]
    parts = np.split(weights, np.cumsum(widths)[:-1], axis=1)
    return np.concatenate(
        [packing.widened(part, padded(part.shape[1], design.lanes), axis=1) for part in parts], axis=1
    )


def _pack_latents(design: AttentionDesign, latents: QuantizedLatents) -> bytes:
    """The part of ``up.bin`` before tiles of rows: multipliers of norms, and tiles of all latents, each of which is
    padded on its own."""

    def padded_parts(columns: Array) -> Array:
        parts = np.split(columns, np.cumsum(latents.shape.ranks)[:-1])
        stacked = np.concatenate([packing.widened(part, padded(len(part), design.lanes), axis=0) for part in parts])
        return packing.widened(stacked, design.latent_tiles * design.head_width, axis=0)

    norms = [
        packing.widened(norm.multipliers[:rank], padded(rank, design.lanes), axis=0)
        for rank, norm in zip(latents.shape.ranks, latents.norms, strict=False)
    ]
    parts = [packing.whole_beats(np.concatenate(norms).astype("<i2").tobytes())]
    weights = padded_parts(packing.widened(latents.down.weights[0], design.width, axis=1))
    biases, multipliers = padded_parts(latents.down.biases[0]), padded_parts(latents.down.multipliers.values[0])
    for first in range(0, len(weights), design.head_width):
        tile = slice(first, first + design.head_width)
        parts.append(packing.parameter_records(biases[tile], multipliers[tile]))
        parts.append(packing.steps_of(weights[tile], design.lanes, design.lanes))
    return b"".join(parts)


def _order_of_tiles(shape: AttentionShape) -> list[int]:
    """The tiles of :class:`QuantizedAttention`, which has them head by head, in the order of the hardware."""
    if not shape.joint_norm:
        return list(range(shape.tiles))
    values = range(VALUE, shape.tiles, 2 + shape.sharing)
    return [*(tile for tile in range(shape.tiles) if tile not in values), *values]


def pack_output(design: AttentionDesign, block: QuantizedAttention) -> bytes:
    """The contents of ``down.bin``."""
    shape = design.shape
    by_head = packing.widened(block.down.weights[0].reshape(shape.width, shape.heads, -1), design.head_width, axis=2)
    by_head = packing.widened(by_head, design.width, axis=0)
    parts = [packing.steps_of(by_head[:, head], design.lanes, design.lanes) for head in range(shape.heads)]
    biases, multipliers = block.down.biases[0], block.down.multipliers.values[0]
    parts.append(
        packing.parameter_records(*(packing.widened(column, design.width, axis=0) for column in (biases, multipliers)))
    )
    return b"".join(parts)


def pack_turns(design: AttentionDesign, turns: QuantizedTurns, sinks: Array | None = None) -> bytes:
    """The contents of ``turns.bin``."""
    pairs = np.stack([turns.cosines, turns.sines], axis=-1).reshape(len(turns.cosines), -1)
    row = design.turn_beats * BEAT_BYTES // 2
    rows = [packing.widened(array, row, axis=1) for array in (_norm_rows(design.shape, turns), pairs)]
    return _pack_sinks(design, sinks) + np.concatenate(rows).astype("<i2").tobytes()


def _pack_sinks(design: AttentionDesign, sinks: Array | None) -> bytes:
    """The sinks of a layer. A layer without sinks, in a design with some, gets sinks that weigh nothing."""
    if not design.shape.sinks:
        return b""
    packed = sink_places(np.full(design.shape.heads, -np.inf)) if sinks is None else sinks
    return packing.whole_beats(packed.astype("<i4").tobytes())


def _norm_rows(shape: AttentionShape, turns: QuantizedTurns) -> Array:
    """Multipliers of a row of keys and of a row of queries, or, if all heads are normalised together, of each tile of
    keys and queries."""
    width = shape.head_width
    keys, queries = (
        np.zeros((1, width), np.int64) if norm is None else norm.multipliers.reshape(-1, width)
        for norm in (turns.key_norm, turns.query_norm)
    )
    if not shape.joint_norm:
        return np.concatenate([keys, queries])
    queries = queries.reshape(shape.key_heads, shape.sharing, width)
    return np.concatenate([keys[: shape.key_heads, None], queries], axis=1).reshape(-1, width)
