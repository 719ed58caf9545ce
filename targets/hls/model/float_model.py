"""A vision transformer in floats: what is quantised beside the blocks, and the blocks in order."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.model.plan import Pool
from moec.targets.hls.model.token_table import TokenTable
from moec.targets.hls.moe.blocks import GraphBlock
from moec.targets.hls.normalization import FloatNorm

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class FloatEmbedding:
    """Tokens of an image: the elements at ``places`` int32 [T, in], which -1 makes zeros of, times ``weights``
    [d, in], and ``table`` [T, d] added: positions, biases, and what tokens hold that are made of no pixel. ``shape``:
    of one image. All in float32."""

    shape: tuple[int, ...]
    places: Array
    weights: Array
    table: Array

    def rows(self, images: Array) -> Array:
        """Images [B, *shape] → the elements of their tokens, [B, T, in]."""
        flat = images.reshape(len(images), -1).astype(np.float32)
        return np.where(self.places >= 0, flat[:, self.places], 0)

    def products(self, images: Array) -> Array:
        """Images [B, *shape] → [B, T, d], without the table."""
        return self.rows(images) @ self.weights.T

    def run(self, images: Array) -> Array:
        """Images [B, *shape] → tokens [B, T, d]."""
        return self.products(images) + self.table


@dataclasses.dataclass(frozen=True)
class FloatHead:
    """``norm``, then ``weights`` [C, d] and ``bias`` [C], of tokens as ``pool`` says."""

    name: str
    norm: FloatNorm
    weights: Array
    bias: Array
    pool: Pool

    def inputs(self, stream: Array) -> Array:
        """The tokens [B, T, d] that count, normalised: [B, 1 or T, d]."""
        taken = stream[:, :1] if self.pool == "first" else stream
        return self.norm.run(taken.reshape(-1, taken.shape[-1])).reshape(taken.shape)

    def products(self, stream: Array) -> Array:
        """[B, T, d] → [B, 1 or T, C], before tokens are averaged."""
        return self.inputs(stream) @ self.weights.T + self.bias


@dataclasses.dataclass(frozen=True)
class Part:
    """What makes ``output`` of ``tokens`` in a graph."""

    tokens: ir.Value
    output: ir.Value


@dataclasses.dataclass(frozen=True)
class GraphModel:
    """``source``: the model's input, images [B, ...] or, without an embedding, the stream [B, T, d] itself. ``stream``:
    what the last block makes. ``result``: the model's output, [B, C] or [B, T, C]; of a decoder without a head the
    stream, and ``headless`` says why.
    ``cached``: positions of a cache of keys and values, 0 where there is none. ``table``: rows of the stream by id of a
    decoder's tokens, where these make all of it."""

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
    def parts(self) -> list[GraphBlock | GraphAttention | Part]:
        """What of the graph it computes, or a host program looks up."""
        head = [] if self.head is None else [Part(self.stream, self.result)]
        return [*([] if self.table is None else [Part(self.table.tokens, self.table.output)]), *self.blocks, *head]
