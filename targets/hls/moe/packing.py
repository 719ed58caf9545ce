"""Packing of weights in the order in which the hardware reads them: every job is one contiguous burst.

| file | contents |
|---|---|
| ``norm.bin`` | if tokens are normalised: parameters of every channel of a token, with int16 multipliers |
| ``router.bin`` | int16 [E, d]; from a new beat on int32 biases [E]; likewise biases of the choice, if any |
| ``up.bin`` | activations int16 [256]; by expert and tile: parameters, multipliers of groups, weights by step |
| ``down.bin`` | by expert: multipliers of groups and weights by step of all tiles, then the parameters of its results |

A step of an array takes ``lanes_in`` inputs of ``lanes_out`` rows. Parameters are 8 bytes: bias int32, multiplier
uint16 (0 if groups have multipliers), padding. Multipliers of groups are int16; those of the rows of a step are
adjacent. A byte holds two int4 weights, the first in its low half. Padding is zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moec.targets.hls.design.experts import Design
from moec.targets.hls.design.normalization import QuantizedNorm
from moec.targets.hls.design.numbers import BEAT_BYTES, PARAMETER_BYTES
from moec.targets.hls.design.projection import QuantizedProjection
from moec.targets.hls.moe.quantize import QuantizedBlock

Array = np.ndarray[Any, Any]


def pack_stream(stream: Array, width: int, dtype: str = "<i2") -> bytes:
    """A residual stream or results [T, d], or tokens that are not normalised, padded to ``width``."""
    return whole_beats(widened(stream.astype(dtype), width, axis=1).tobytes())


def pack_router(design: Design, block: QuantizedBlock) -> bytes:
    weights = widened(block.router.astype("<i2"), design.width, axis=1)
    biases = [block.router_bias, *([] if block.choice_bias is None else [block.choice_bias])]
    return whole_beats(weights.tobytes()) + b"".join(whole_beats(vector.astype("<i4").tobytes()) for vector in biases)


def pack_norm(norm: QuantizedNorm, width: int) -> bytes:
    """The parameters of a normalisation's channels, padded to ``width``."""
    return parameter_records(widened(norm.biases, width, axis=0), widened(norm.multipliers, width, axis=0) & 0xFFFF)


def pack_up(design: Design, block: QuantizedBlock) -> bytes:
    projections, tile = design.projections, design.hidden_tile
    rows = design.hidden * projections
    parts = [block.activation.astype("<i2").tobytes()]
    for expert in range(block.shape.all_experts):
        weights = widened(widened(block.up.weights[expert], rows, axis=0), design.width, axis=1)
        biases = widened(block.up.biases[expert], rows, axis=0)
        multipliers = widened(block.up.multipliers.values[expert], rows, axis=0)
        for first in range(0, rows, tile * projections):
            channels = slice(first, first + tile * projections)
            parts.append(_scaling(biases[channels], multipliers[channels], design.lanes_out * projections))
            parts.append(
                steps_of(weights[channels], design.lanes_out * projections, design.lanes_in, block.shape.weight_bits)
            )
    return b"".join(parts)


def pack_down(design: Design, down: QuantizedProjection) -> bytes:
    """The second product of all experts."""
    parts = []
    for expert in range(len(down.weights)):
        weights = widened(widened(down.weights[expert], design.width, axis=0), design.hidden, axis=1)
        multipliers = widened(down.multipliers.values[expert], design.width, axis=0)
        if down.group:
            multipliers = widened(multipliers, design.hidden // down.group, axis=1)
        for first in range(0, design.hidden, design.hidden_tile):
            columns = slice(first, first + design.hidden_tile)
            if down.group:
                of_tile = multipliers[:, first // down.group : (first + design.hidden_tile) // down.group]
                parts.append(group_records(of_tile, design.lanes_out))
            parts.append(steps_of(weights[:, columns], design.lanes_out, design.lanes_in, design.shape.weight_bits))
        biases = widened(down.biases[expert], design.width, axis=0)
        parts.append(parameter_records(biases, np.zeros_like(biases) if down.group else multipliers))
    return b"".join(parts)


def widened(array: Array, size: int, axis: int) -> Array:
    """The array padded with zeros to ``size`` along the axis."""
    padding = [(0, 0)] * array.ndim
    padding[axis] = (0, size - array.shape[axis])
    return np.pad(array, padding)


def whole_beats(data: bytes) -> bytes:
    return data + bytes(-len(data) % BEAT_BYTES)


def parameter_records(biases: Array, multipliers: Array) -> bytes:
    """Whole beats of parameter records, one of 8 bytes per channel."""
    records = np.zeros((len(biases), PARAMETER_BYTES), np.uint8)
    records[:, :4] = biases.astype("<i4").view(np.uint8).reshape(-1, 4)
    records[:, 4:6] = multipliers.astype("<u2").view(np.uint8).reshape(-1, 2)
    return whole_beats(records.tobytes())


def _scaling(biases: Array, multipliers: Array, rows: int) -> bytes:
    """The parameters of channels, followed by the multipliers [channels, groups] of their groups, if they have any."""
    if multipliers.ndim == 1:
        return parameter_records(biases, multipliers)
    return parameter_records(biases, np.zeros_like(biases)) + group_records(multipliers, rows)


def group_records(multipliers: Array, rows: int) -> bytes:
    """Whole beats of the multipliers [channels, groups] of groups: for every ``rows`` channels, and for each of their
    groups, the multipliers of these rows."""
    places = multipliers.reshape(-1, rows, multipliers.shape[1]).transpose(0, 2, 1)
    return whole_beats(places.astype("<i2").tobytes())


def steps_of(weights: Array, rows: int, columns: int, weight_bits: int = 8) -> bytes:
    """A matrix as tiles of rows x columns, in row-major order of the tiles."""
    height, width = weights.shape
    tiles = weights.reshape(height // rows, rows, width // columns, columns).transpose(0, 2, 1, 3)
    flat = np.ascontiguousarray(tiles, np.int8).reshape(-1)
    if weight_bits == 4:
        halves = flat.view(np.uint8) & 15
        return (halves[0::2] | halves[1::2] << 4).astype(np.uint8).tobytes()
    return flat.tobytes()
