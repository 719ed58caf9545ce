"""Small vision transformers in graphs, as exporters write them. Images are [B, 1, 4, 4], patches 2 x 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.attention.graph import find_attention
from moec.targets.hls.model.float_model import GraphModel
from moec.targets.hls.model.graph import find_model
from moec.targets.hls.moe.blocks import find_blocks

from .graphs import D, E, GraphBuilder

HEADS, CHANNELS, HIDDEN, CLASSES = 2, 6, 10, 5
Part = Callable[..., ir.Value]


def images(graph: GraphBuilder, batch: Any = "B", kind: ir.DataType = ir.DataType.FLOAT) -> None:
    graph.x = ir.Value(name="images", shape=ir.Shape([batch, 1, 4, 4]), type=ir.TensorType(kind))


def convolution(graph: GraphBuilder, pixels: ir.Value) -> ir.Value:
    """The patches [B, 4, D] of images [B, 1, 4, 4], by a convolution."""
    patches = graph.add("Conv", pixels, graph.normal(D, 1, 2, 2), graph.normal(D), strides=[2, 2])
    flat = graph.add("Reshape", patches, graph.constant(np.array([0, D, -1])))
    return graph.add("Transpose", flat, perm=[0, 2, 1])


def cut_patches(graph: GraphBuilder, pixels: ir.Value) -> ir.Value:
    cut = graph.add("Reshape", pixels, graph.constant(np.array([0, 1, 2, 2, 2, 2])))
    moved = graph.add("Transpose", cut, perm=[0, 2, 4, 3, 5, 1])
    return graph.dense(graph.add("Reshape", moved, graph.constant(np.array([0, 4, 4]))), D, 4)


def with_class(graph: GraphBuilder, patches: ir.Value, tokens: int = 1) -> ir.Value:
    """The patches after ``tokens`` constant class tokens, repeated for each image."""
    count = graph.add("Shape", graph.x, end=1)
    sizes = graph.add("Concat", count, graph.constant(np.array([tokens])), graph.constant(np.array([D])), axis=0)
    repeated = graph.add("Expand", graph.normal(1, tokens, D), sizes)
    return graph.add("Concat", repeated, patches, axis=1)


def placed(graph: GraphBuilder, tokens: ir.Value, count: int) -> ir.Value:
    return graph.add("Add", tokens, graph.normal(1, count, D))


def normal(graph: GraphBuilder, stream: ir.Value) -> ir.Value:
    return graph.add("LayerNormalization", stream, graph.normal(D), graph.normal(D))


def attention(graph: GraphBuilder, stream: ir.Value) -> ir.Value:
    tokens = normal(graph, stream)
    query, key, value = (graph.dense(tokens, HEADS * CHANNELS) for _ in range(3))
    heads = graph.add("Attention", query, key, value, q_num_heads=HEADS, kv_num_heads=HEADS)
    return graph.add("Add", stream, graph.dense(heads, D, HEADS * CHANNELS))


def gelu(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    return graph.add("Gelu", value)


def erf_gelu(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    root, one, half = (graph.constant(np.float32(number)) for number in (2**0.5, 1, 0.5))
    erf = graph.add("Erf", graph.add("Div", value, root))
    return graph.add("Mul", graph.add("Mul", value, graph.add("Add", erf, one)), half)


def feed_forward(graph: GraphBuilder, stream: ir.Value, activation: Part = gelu, *, scaled: bool = False) -> ir.Value:
    up = activation(graph, graph.dense(normal(graph, stream), HIDDEN))
    down = graph.dense(up, D, HIDDEN)
    return graph.add("Add", graph.add("Mul", down, graph.normal(D)) if scaled else down, stream)


def experts(graph: GraphBuilder, stream: ir.Value, *, scaled: bool = False) -> ir.Value:
    tokens = normal(graph, stream)
    spec = ExpertsSpec(activation="gelu", gate_layout="none")
    rows = graph.rows(tokens)
    results = graph.moe(rows, graph.dense(rows, E), spec)
    shaped = graph.add("Reshape", results, graph.add("Shape", stream))
    return graph.add("Add", stream, graph.add("Mul", shaped, graph.normal(D)) if scaled else shaped)


def first_token(graph: GraphBuilder, tokens: ir.Value) -> ir.Value:
    return graph.dense(graph.add("Gather", tokens, graph.constant(np.array(0)), axis=1), CLASSES)


def mean_token(graph: GraphBuilder, tokens: ir.Value) -> ir.Value:
    mean = graph.add("ReduceMean", tokens, graph.constant(np.array([1])), keepdims=0)
    return graph.dense(mean, CLASSES)


def all_tokens(graph: GraphBuilder, tokens: ir.Value) -> ir.Value:
    return graph.dense(tokens, CLASSES)


def transformer(
    graph: GraphBuilder, tokens: ir.Value, head: Part = first_token, activation: Part = gelu, *, scaled: bool = False
) -> ir.Model:
    """A transformer on tokens [B, T, D]: attention, dense layer, attention, experts, then normalisation and head."""
    stream = feed_forward(graph, attention(graph, tokens), activation, scaled=scaled)
    stream = experts(graph, attention(graph, stream), scaled=scaled)
    return finished(graph, head(graph, normal(graph, stream)))


def finished(graph: GraphBuilder, result: ir.Value) -> ir.Model:
    """The model with inferred shapes."""
    model = graph.model(result)
    pipeline.run(model, pipeline.parse("infer-shapes,fold-constants,fold-shapes,simplify,infer-shapes"))
    return model


def found(model: ir.Model) -> GraphModel:
    """The model that is found in the graph. Raises UnsupportedError where it has another form."""
    return find_model(model, find_blocks(model), *find_attention(model))
