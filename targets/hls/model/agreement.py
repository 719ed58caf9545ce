"""The comparison of all parts of a model with the graph on calibration data: see
:mod:`moec.targets.hls.graph.agreement`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moec.targets.hls.attention.agreement import attention_agreement
from moec.targets.hls.attention.graph import GraphAttention
from moec.targets.hls.graph.agreement import Agreement, Compared, agreement, sequences_compared
from moec.targets.hls.model.float_model import FloatEmbedding, FloatHead, GraphModel
from moec.targets.hls.moe.agreement import experts_agreement

Array = np.ndarray[Any, Any]


def model_agreements(graph: GraphModel, images: Array, streams: Sequence[Array], result: Array) -> list[Agreement]:
    """Compare each part of the model with the graph's arrays: ``images`` at its source, the ``streams`` that each block
    takes and that the last one returns, and its ``result``. Raises UnsupportedError, naming the node, where a part
    computes something else."""
    agreements = [] if graph.embedding is None else [_embedding(graph.embedding, images, streams[0])]
    for block, tokens, output in zip(graph.blocks, streams, streams[1:], strict=False):
        if isinstance(block, GraphAttention):
            agreements.append(attention_agreement(block, tokens, output))
        else:
            agreements.append(experts_agreement(block, tokens, output))
    return [*agreements, *([] if graph.head is None else [_head(graph.head, streams[-1], result)])]


def _embedding(embedding: FloatEmbedding, images: Array, tokens: Array) -> Agreement:
    """Compare the embedding on images [B, ...] with tokens [B, T, d]."""
    count = sequences_compared(tokens.shape[1])
    expected = tokens[:count].astype(np.float32)
    return agreement("the embedding of patches", Compared.whole(embedding.run(images[:count]), expected))


def _head(head: FloatHead, stream: Array, logits: Array) -> Agreement:
    """Compare the head on tokens [B, T, d] with logits [B, C] or [B, T, C]."""
    count = sequences_compared(stream.shape[1])
    actual = head.products(stream[:count].astype(np.float32))
    actual = actual.mean(axis=1, keepdims=True) if head.pool == "mean" else actual
    return agreement(head.name, Compared.whole(actual, logits[:count].astype(np.float32).reshape(actual.shape)))
