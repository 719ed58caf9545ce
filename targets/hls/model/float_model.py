"""The float form of a whole model: its blocks in order, its embedding and its head."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.design.normalization import FloatNorm
from moec.targets.hls.model.plan import Pool
from moec.targets.hls.model.token_table import TokenTable
from moec.targets.hls.moe.blocks import GraphBlock

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class FloatEmbedding:
    """The embedding of an image [*shape] as tokens, in float32.

    The elements at ``places`` int32 [T, in], 0 for -1, are multiplied by ``weights`` [d, in], and ``table`` [T, d] is
    added: positions, biases, and tokens that do not depend on the image.
    """

    shape: tuple[int, ...]
    places: Array
    weights: Array
    table: Array

    def rows(self, images: Array) -> Array:
        """The elements [B, T, in] of the tokens of images [B, *shape]."""
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.where(self.places >= 0, flat[:, self.places], 0)

    def products(self, images: Array) -> Array:
        """The tokens [B, T, d] of images [B, *shape], without the table."""
        return self.rows(images) @ self.weights.T

    def run(self, images: Array) -> Array:
        """The tokens [B, T, d] of images [B, *shape]."""
        return self.products(images) + self.table


@dataclasses.dataclass(frozen=True)
class FloatHead:
    """The head of a model: ``norm``, then ``weights`` [C, d] and ``bias`` [C], for the tokens that ``pool`` selects."""

    name: str
    norm: FloatNorm
    weights: Array
    bias: Array
    pool: Pool

    def inputs(self, stream: Array) -> Array:
        """The normalised tokens [B, 1 or T, d] that count, for a stream [B, T, d]."""
        taken = stream[:, :1] if self.pool == "first" else stream
        return self.norm.run(taken.reshape(-1, taken.shape[-1])).reshape(taken.shape)

    def products(self, stream: Array) -> Array:
        """The products [B, 1 or T, C] of a stream [B, T, d], before tokens are averaged."""
        return self.inputs(stream) @ self.weights.T + self.bias


@dataclasses.dataclass(frozen=True)
class ModelPart:
    """The part of a graph between two values."""

    tokens: ir.Value
    output: ir.Value


@dataclasses.dataclass(frozen=True)
class GraphModel:
    """The parts of a whole model in a graph.

    - ``source``: the input, images [B, ...] or, without an embedding, the stream [B, T, d] itself.
    - ``stream``: the output of the last block.
    - ``result``: the output, [B, C] or [B, T, C]; for a decoder without a head the stream, with the reason in
      ``headless``.
    - ``cached``: positions of the cache of keys and values, 0 without one.
    - ``table``: the stream's rows by token id, if a decoder's ids alone determine them.
    """

    source: ir.Value
    stream: ir.Value
    result: ir.Value
    tokens: int
    width: int
    embedding: FloatEmbedding | None
    blocks: tuple[GraphBlock | GraphAttention, ...]
    head: FloatHead | None
    cached: int = 0
    table: TokenTable | None = None
    headless: str = ""

    @property
    def parts(self) -> list[GraphBlock | GraphAttention | ModelPart]:
        """The parts of the graph that the design computes, or that a host program looks up."""
        head = [] if self.head is None else [ModelPart(self.stream, self.result)]
        return [*([] if self.table is None else [ModelPart(self.table.tokens, self.table.output)]), *self.blocks, *head]
