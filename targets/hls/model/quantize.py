"""Quantisation of a whole model to a plan: scales of all layers from calibration data, and the shifts they share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from moec.common.errors import InputError, UnsupportedError
from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.attention.quantize import QuantizedAttention, quantize_attention
from moec.targets.hls.design.normalization import quantize_norm, stream_scale_for
from moec.targets.hls.design.projection import project
from moec.targets.hls.graph.calibrate import evaluate_data, feeds_of
from moec.targets.hls.model.alike import made_alike
from moec.targets.hls.model.float_model import FloatEmbedding, FloatHead, GraphModel
from moec.targets.hls.model.plan import ModelPlan, Patches, QuantizedLinear, stream_steps
from moec.targets.hls.model.shared_shifts import least_bits, smallest_shifts, with_shifts
from moec.targets.hls.moe.blocks import GraphBlock
from moec.targets.hls.moe.quantize import GATE_ONE, QuantizedBlock, quantize, scale_for

Array = np.ndarray[Any, Any]

_LEAST_BITS = 6
"""The least bits of a product's largest multiplier after shifts are shared: its rounding is less than 1 percent."""
_HEADROOM = {"images": 1.25, "text": 4.0}
"""The factor by which logits may exceed those of the calibration data before they saturate and become equal. A text
contains few of all ids, so it needs more; 16 bits have room for it."""


@np.errstate(all="ignore")  # overflows are refused by name
def quantize_model(
    model: ir.Model, graph: GraphModel, inputs: Mapping[str, Array], *, name: str, weight_bits: Literal[4, 8] = 8
) -> ModelPlan:
    """Quantise a model, calibrated with ``inputs`` by name. ``weight_bits``: of experts and dense layers.

    Raises InputError for calibration data that the model does not take; UnsupportedError, naming the node, for numbers
    that the hardware cannot hold, and for layers that cannot share one array.
    """
    if weight_bits == 4 and (graph.embedding is not None or graph.head is not None):
        raise UnsupportedError("experts have int4 weights and linear layers int8; expected one width")
    feeds = feeds_of(model, inputs)
    if graph.source in feeds and not len(feeds[graph.source]):
        raise InputError(f"calibration data for {graph.source.name!r} has no image; expected at least one")
    seen = evaluate_data(model, feeds, [graph.source, *(block.tokens for block in graph.blocks), graph.stream])
    images, streams = seen[0], [stream.astype(np.float32) for stream in seen[1:]]
    tokens = [block.as_tokens(stream) for block, stream in zip(graph.blocks, streams, strict=False)]
    stream_scale = _stream_scale(graph, images, tokens)
    blocks = [
        _block(block, rows, graph, stream_scale, weight_bits) for block, rows in zip(graph.blocks, tokens, strict=True)
    ]
    heads = _heads(
        graph.head, streams[-1], stream_scale, _HEADROOM["images" if graph.embedding is not None else "text"]
    )
    patches, embedding = None, None
    if graph.embedding is not None:
        patches, embedding = _embedding(graph.embedding, images, stream_scale)
    _expect_one_array([block.numbers.name for block in graph.blocks], blocks)
    widths = [block.shape.weight_bits for block in blocks if isinstance(block, QuantizedBlock)]
    if graph.embedding is None and heads and max(widths, default=8) < 8:
        raise UnsupportedError(
            "the head has int8 weights and experts int4, which would take as much memory as int8; expected one width"
        )
    plan = planned(name, graph.tokens, stream_scale, patches, embedding, blocks, heads)
    if graph.table is not None:
        plan = dataclasses.replace(plan, token_rows=stream_steps(graph.table.rows, stream_scale))
    if least_bits(plan.layers) < _LEAST_BITS:
        raise UnsupportedError(
            f"scales of layers differ so much that one shift leaves a multiplier of {least_bits(plan.layers)} "
            f"bits; expected {_LEAST_BITS}"
        )
    return plan


def planned(
    name: str,
    tokens: int,
    stream_scale: float,
    patches: Patches | None,
    embedding: QuantizedLinear | None,
    blocks: Sequence[QuantizedBlock | QuantizedAttention],
    heads: Sequence[QuantizedLinear],
) -> ModelPlan:
    """The plan of layers that were quantised independently, adapted to the hardware that they share."""
    layers = made_alike([*([] if embedding is None else [embedding]), *blocks, *heads])
    shifts = smallest_shifts(layers)
    shifted: list[Any] = [with_shifts(layer, shifts) for layer in layers]  # of the same types as layers
    first = len(layers) - len(blocks) - len(heads)
    return ModelPlan(
        name,
        tokens,
        blocks[0].shape.width,
        stream_scale,
        patches,
        shifted[0] if first else None,
        tuple(shifted[first : first + len(blocks)]),
        tuple(shifted[first + len(blocks) :]),
    )


def _stream_scale(graph: GraphModel, images: Array, tokens: Sequence[Array]) -> float:
    """The scale of the residual stream, large enough for all layers."""
    needed = [block.numbers.needed_scale(rows) or 0.0 for block, rows in zip(graph.blocks, tokens, strict=True)]
    if graph.embedding is not None:
        products, table = graph.embedding.products(images), graph.embedding.table
        moved = _table(graph.embedding, _pixel_steps(graph.embedding, images)[1])
        # The hardware adds the moved table to the products of pixels without their offset.
        needed.append(stream_scale_for(products + table - moved, moved, products + table))
    if graph.table is not None:
        needed.append(stream_scale_for(graph.table.rows))
    return max(needed)


def _block(
    block: GraphBlock | GraphAttention, rows: Array, graph: GraphModel, stream_scale: float, weight_bits: int
) -> QuantizedBlock | QuantizedAttention:
    with _blamed(block.numbers.name):
        if isinstance(block, GraphAttention):
            return quantize_attention(
                block.numbers, rows, most_tokens=graph.tokens, cached=graph.cached, stream_scale=stream_scale
            )
        return quantize(
            block.numbers, rows, most_tokens=graph.tokens, weight_bits=weight_bits, stream_scale=stream_scale
        )


@contextlib.contextmanager
def _blamed(name: str) -> Iterator[None]:
    """A context in which the message of an UnsupportedError begins with the node's name."""
    try:
        yield
    except UnsupportedError as error:
        raise error if str(error).startswith(name) else UnsupportedError(f"{name}: {error}") from error


def _embedding(embedding: FloatEmbedding, images: Array, stream_scale: float) -> tuple[Patches, QuantizedLinear]:
    scale, offset = _pixel_steps(embedding, images)
    width = len(embedding.weights)
    with _blamed("the embedding of patches"):
        down = project(embedding.weights[None], np.zeros((1, width)), scale, np.full(width, stream_scale), 8)
    # Subtract the error that rounding the weights causes for the mean of all images.
    steps = down.multipliers.values[0] * 2.0**-down.multipliers.shift * stream_scale / scale
    mean = np.where(embedding.places >= 0, embedding.rows(images).mean(axis=0) - offset, 0)
    table = _table(embedding, offset) - mean @ (down.weights[0] * steps[:, None] - embedding.weights).T
    positions = np.clip(np.round(table / stream_scale), -32768, 32767).astype(np.int16)
    linear = QuantizedLinear(down, scale, stream_scale, positions=positions)
    return Patches(embedding.shape, embedding.places, scale, offset), linear


def _pixel_steps(embedding: FloatEmbedding, images: Array) -> tuple[float, float]:
    """The scale of a pixel's steps, and the pixel that 0 stands for. The 256 steps range from the smallest to the
    largest pixel of the calibration data."""
    taken = embedding.places[embedding.places >= 0]
    pixels = images.reshape(len(images), -1)[:, taken]
    low, high = float(pixels.min()), float(pixels.max())
    scale = (high - low) / 255 or 1.0
    return scale, low + 128 * scale


def _table(embedding: FloatEmbedding, offset: float) -> Array:
    """The table [T, d] to add to products of pixels from which ``offset`` was subtracted."""
    return embedding.table + offset * (embedding.places >= 0) @ embedding.weights.T


def _heads(head: FloatHead | None, stream: Array, stream_scale: float, headroom: float) -> list[QuantizedLinear]:
    """The head split into products, each with at most as many outputs as the stream is wide. ``headroom``: see
    :data:`_HEADROOM`."""
    if head is None:
        return []
    width = stream.shape[-1]
    inputs = head.inputs(stream)
    input_scale = scale_for(inputs, 8)
    largest = float(np.abs(head.products(stream)).max(initial=0.0)) or 1.0
    result_scale = largest * headroom / 32767
    gate = round(GATE_ONE / stream.shape[1]) if head.pool == "mean" else GATE_ONE
    # Rounded gates do not sum to 1, so the scale of results is corrected by their sum.
    sum_of_gates = gate * (stream.shape[1] if head.pool == "mean" else 1) / GATE_ONE
    norm = quantize_norm(head.name, head.norm, stream_scale, input_scale)
    heads = []
    for first in range(0, len(head.weights), width):
        part = slice(first, first + width)
        count = len(head.bias[part])
        with _blamed("the head"):
            down = project(
                head.weights[None, part], head.bias[None, part], input_scale, np.full(count, result_scale), 8
            )
        heads.append(QuantizedLinear(down, input_scale, result_scale / sum_of_gates, norm, head.pool, gate))
    return heads


def _expect_one_array(names: Sequence[str], blocks: Sequence[QuantizedBlock | QuantizedAttention]) -> None:
    """Check that all blocks can share their hardware. Raises UnsupportedError, naming two blocks, if not."""
    norms = [(name, block.shape.norm) for name, block in zip(names, blocks, strict=True)]
    mixtures = [
        (name, block.shape) for name, block in zip(names, blocks, strict=True) if isinstance(block, QuantizedBlock)
    ]
    routed = [(name, shape) for name, shape in mixtures if shape.experts]
    attention = [
        (name, block.shape) for name, block in zip(names, blocks, strict=True) if isinstance(block, QuantizedAttention)
    ]
    demands: list[tuple[str, list[tuple[str, Any]]]] = [("normalisation", norms)]
    for field in ("scoring", "normalized", "groups", "groups_kept", "group_sum"):
        demands.append((field, [(name, getattr(shape, field)) for name, shape in routed]))
    for field in ("heads", "head_width", "sharing", "causal", "latents"):
        demands.append((field, [(name, getattr(shape, field)) for name, shape in attention]))
    for what, values in demands:
        for name, value in values:
            if value != values[0][1]:
                raise UnsupportedError(
                    f"{name}: {what.replace('_', ' ')} is {value} and that of {values[0][0]} {values[0][1]}; "
                    "expected the same, because layers of one design share its arrays"
                )
