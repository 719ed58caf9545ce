"""The indexer of sparse attention (DeepSeek-V3.2, GLM-5): for each query it selects the keys that attention sees.

The score of a key s for a query t is a sum over the indexer's heads j, with one key of its own per token, which is
cached (arXiv 2512.02556, section 2.1)::

    score[t,s] = sum_j weight[t,j] * relu(query[t,j] . key[s])

Attention sees the ``top_k`` keys of the largest scores, the earlier key where scores are equal. llama.cpp multiplies
queries and keys by a Hadamard matrix first: it is orthonormal, so the scores stay, and it is left out.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir

from moec.common.errors import MoecError, UnsupportedError
from moec.frontend.gguf.graph.builder import BATCH, PAST_LENGTH, Builder
from moec.frontend.gguf.parts.rope import Rope

_EPSILON = 1e-6
"""Epsilon of the layer norm of keys, which files do not hold (transformers, and llama.cpp for DeepSeek-V3.2)."""
_LONG_CONTEXT = 1 << 20
"""Context length from which a file without ``attention.indexer.types`` is GLM-5.2, where layers share selections."""


@dataclasses.dataclass
class Indexer:
    """Indexers of a model. ``full``: whether each layer selects keys; the others see those of the last one that does.
    ``last``: the selection of that layer."""

    heads: int
    size: int
    top_k: int
    full: list[bool]
    last: ir.Value | None = None

    @staticmethod
    def of(build: Builder, rotated: int) -> Indexer:
        """Read the metadata. ``rotated``: elements of a key with rotary embedding. Raises MoecError for sizes or
        layers that do not fit."""
        metadata, key = build.metadata, "attention.indexer"
        heads, size = metadata.whole(f"{key}.head_count"), metadata.whole(f"{key}.key_length")
        if size < rotated:
            raise UnsupportedError(
                f"{metadata.where}: {metadata.architecture}.{key}.key_length is {size}; expected at least the "
                f"{rotated} elements that rotate"
            )
        if f"{key}.types" in metadata:
            full = [flag != 0 for flag in metadata.by_layer(f"{key}.types", build.blocks, least=0)]
        else:
            is_long = metadata.whole("context_length", 1) >= _LONG_CONTEXT
            full = [not is_long or layer < 2 or layer % 4 == 2 for layer in range(build.blocks)]
        if not full[0]:
            raise MoecError(
                f"{metadata.where}: {metadata.architecture}.{key}.types has no indexer in the first layer, which has "
                "no layer before it to share with; convert the model again"
            )
        return Indexer(heads, size, metadata.whole(f"{key}.top_k"), full)

    def past(self, build: Builder, layer: int) -> ir.Value | None:
        """Add an input for the layer's past keys [B,P,size], where it selects and there is a cache."""
        if not build.with_cache or not self.full[layer]:
            return None
        return build.past("index", layer, (BATCH, PAST_LENGTH, self.size))

    def seen(
        self, build: Builder, x: ir.Value, low: tuple[ir.Value, int], layer: int, past: ir.Value | None, rope: Rope
    ) -> ir.Value:
        """Mask bool [B,1,S,P+S] of the keys that are selected. x [B,S,D]: the input of attention. ``low``: the
        queries' latent, and its size. Attention itself masks the keys after a query."""
        if self.full[layer]:
            self.last = self._selected(build, self._scores(build, x, low, layer, past, rope), f"blk.{layer}.indexer")
        assert self.last is not None
        return self.last

    def _scores(
        self, build: Builder, x: ir.Value, low: tuple[ir.Value, int], layer: int, past: ir.Value | None, rope: Rope
    ) -> ir.Value:
        """Scores [B,1,S,P+S]."""
        write, name = build.write, f"blk.{layer}.indexer"
        query = build.linear(low[0], f"{name}.attn_q_b", low[1], self.heads * self.size)
        query = rope(write.heads(query, self.heads, self.size, f"{name}.query"), f"{name}.query.rotated")
        key = build.linear(x, f"{name}.attn_k", build.width, self.size)
        norm = [build.vector(f"{name}.k_norm.{part}", self.size) for part in ("weight", "bias")]
        key = write.op("LayerNormalization", key, *norm, axis=-1, epsilon=_EPSILON, label=f"{name}.k_norm")
        key = rope(write.heads(key, 1, self.size, f"{name}.key"), f"{name}.key.rotated")
        key = write.op("Squeeze", key, write.numbers(1), label=f"{name}.key.row")
        if past is not None:
            key = write.op("Concat", past, key, axis=1, label=f"{name}.keys")
            build.keep("index", layer, key)
        columns = write.op("Unsqueeze", write.op("Transpose", key, perm=[0, 2, 1]), write.numbers(1))
        met = write.op("MatMul", query, columns, label=f"{name}.met")
        weight = build.linear(x, f"{name}.proj", build.width, self.heads)
        weight = write.scaled(weight, (self.heads * self.size) ** -0.5, f"{name}.proj.scaled")
        weighted = write.op("Mul", write.op("Relu", met), write.heads(weight, self.heads, 1, f"{name}.weight"))
        return write.op("ReduceSum", weighted, write.numbers(1), keepdims=1, label=f"{name}.scores")

    def _selected(self, build: Builder, scores: ir.Value, name: str) -> ir.Value:
        write = build.write
        own = write.op("Unsqueeze", build.positions, write.numbers(1))
        order = write.op("LessOrEqual", build.columns, own, label=f"{name}.causal")
        scores = write.op("Where", order, scores, write.scalar(-np.inf), label=f"{name}.ordered")
        count = write.op("Min", build.total, write.numbers(self.top_k), label=f"{name}.count")
        top = ir.node("TopK", [scores, count], {"axis": -1}, num_outputs=2)
        _, places = write.add(top, f"{name}.top", f"{name}.places")
        shapes = [write.op("Shape", value) for value in (scores, places)]
        nothing, hits = (
            write.op("ConstantOfShape", shape, value=ir.tensor(np.array([number], np.float32)))
            for shape, number in zip(shapes, (0, 1), strict=True)
        )
        flags = write.op("ScatterElements", nothing, places, hits, axis=-1, label=f"{name}.flags")
        return write.op("Greater", flags, write.scalar(0.0), label=f"{name}.seen")
