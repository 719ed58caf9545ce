"""Whole vision transformers in graphs: models that are found compute what the graph does, and other forms are
refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.targets.hls.attention.graph import GraphAttention

from . import vision_models as vision
from .graphs import D, GraphBuilder


def computed(result, images):
    """The output of a model that was found: its float parts, run one after the other."""
    stream = images if result.embedding is None else result.embedding.run(images)
    for block in result.blocks:
        rows = stream if isinstance(block, GraphAttention) else stream.reshape(-1, D)
        stream = block.numbers.run(rows).output.reshape(stream.shape)
    if result.head is None:
        return stream
    results = result.head.products(stream)
    return {"none": results, "first": results[:, 0], "mean": results.mean(axis=1)}[result.head.pool]


def expect_the_same(model, actual, images):
    (expected,) = interpreter.run(model, {"images": images}).values()
    np.testing.assert_allclose(computed(actual, images), expected, atol=1e-4 * np.abs(expected).max())


def pixels(count=3, kind=np.float32):
    return np.random.default_rng(0).integers(0, 256, (count, 1, 4, 4)).astype(kind)


def embedded(graph, embed, tokens=1):
    patches = embed(graph, graph.x)
    return vision.placed(graph, vision.with_class(graph, patches, tokens) if tokens else patches, 4 + tokens)


@pytest.mark.parametrize("embed", [vision.convolution, vision.cut_patches])
@pytest.mark.parametrize(
    ("head", "tokens", "pool"),
    [(vision.first_token, 1, "first"), (vision.mean_token, 0, "mean"), (vision.all_tokens, 2, "none")],
)
def test_a_model_is_found_from_pixels_to_logits(embed, head, tokens, pool):
    graph = GraphBuilder()
    vision.images(graph)
    model = vision.transformer(graph, embedded(graph, embed, tokens), head)
    actual = vision.found(model)
    assert (actual.tokens, actual.width, len(actual.blocks), actual.head.pool) == (4 + tokens, D, 4, pool)
    assert [block.numbers.count for block in actual.blocks[1::2]] == [0, 4]
    expect_the_same(model, actual, pixels() / np.float32(256))


@pytest.mark.parametrize("activation", [vision.gelu, vision.erf_gelu])
def test_results_may_be_scaled_and_activations_spelled_in_any_way(activation):
    graph = GraphBuilder()
    vision.images(graph, batch=1)
    model = vision.transformer(graph, embedded(graph, vision.convolution), activation=activation, scaled=True)
    actual = vision.found(model)
    assert actual.blocks[1].numbers.experts.activation == "gelu"
    expect_the_same(model, actual, pixels(1) / np.float32(256))


def test_bytes_that_are_normalised_in_the_graph_are_taken_as_they_are():
    graph = GraphBuilder()
    vision.images(graph, kind=ir.DataType.UINT8)
    floats = graph.add("Cast", graph.x, to=ir.DataType.FLOAT)
    mean, scale = graph.constant(np.float32(127)), graph.constant(np.float32(1 / 60))
    normal = graph.add("Mul", graph.add("Sub", floats, mean), scale)
    tokens = vision.placed(graph, vision.with_class(graph, vision.convolution(graph, normal)), 5)
    model = vision.transformer(graph, tokens)
    actual = vision.found(model)
    assert actual.embedding.places[1].tolist() == [0, 1, 4, 5]
    expect_the_same(model, actual, pixels(kind=np.uint8))


def test_patches_may_overlap_and_reach_over_the_edge():
    graph = GraphBuilder()
    vision.images(graph)
    patches = graph.add("Conv", graph.x, graph.normal(D, 1, 3, 3), graph.normal(D), strides=[2, 2], pads=[1, 1, 0, 0])
    flat = graph.add("Transpose", graph.add("Reshape", patches, graph.constant(np.array([0, D, 4]))), perm=[0, 2, 1])
    model = vision.transformer(graph, vision.placed(graph, flat, 4), vision.mean_token)
    actual = vision.found(model)
    assert actual.embedding.places[0].tolist() == [-1, -1, -1, -1, 0, 1, -1, 4, 5]
    expect_the_same(model, actual, pixels() / np.float32(256))


def test_the_stream_itself_may_be_input_and_output():
    graph = GraphBuilder()
    graph.x = ir.Value(name="images", shape=ir.Shape([1, 4, D]), type=ir.TensorType(ir.DataType.FLOAT))
    model = vision.finished(graph, vision.experts(graph, vision.attention(graph, graph.x)))
    actual = vision.found(model)
    assert (actual.embedding, actual.head) == (None, None)
    expect_the_same(model, actual, np.random.default_rng(0).normal(size=(1, 4, D)).astype(np.float32))


def test_the_first_token_may_be_taken_in_front_of_the_normalisation():
    graph = GraphBuilder()
    vision.images(graph)
    stream = vision.experts(graph, vision.attention(graph, embedded(graph, vision.convolution)))
    first = graph.add("Gather", stream, graph.constant(np.array(0)), axis=1)
    model = vision.finished(graph, graph.dense(vision.normal(graph, first), vision.CLASSES))
    actual = vision.found(model)
    assert actual.head.pool == "first"
    expect_the_same(model, actual, pixels() / np.float32(256))


def twice(graph):
    """An embedding with two products before the first block."""
    return vision.placed(graph, graph.dense(vision.convolution(graph, graph.x), D), 4)


def squashed(graph):
    return vision.placed(graph, graph.add("Tanh", vision.convolution(graph, graph.x)), 4)


def squared(graph):
    return vision.placed(graph, vision.convolution(graph, graph.add("Mul", graph.x, graph.x)), 4)


@pytest.mark.parametrize(
    ("tokens", "reason"),
    [
        (twice, "are 2 products (node_Conv_0, node_MatMul_3)"),
        (squashed, "are not elements of 'v0'"),
        (squared, "are not elements of 'images'"),
    ],
)
def test_what_is_no_embedding_of_patches_is_refused(tokens, reason):
    graph = GraphBuilder()
    vision.images(graph)
    with pytest.raises(UnsupportedError) as error:
        vision.found(vision.transformer(graph, tokens(graph), vision.mean_token))
    assert reason in str(error.value)


def test_images_that_no_memory_holds_are_refused():
    graph = GraphBuilder()
    graph.x = ir.Value(name="images", shape=ir.Shape(["B", 1 << 40]), type=ir.TensorType(ir.DataType.FLOAT))
    pixels = graph.add("Slice", graph.x, *(graph.constant(np.array([place])) for place in (0, 16, 1)))
    images = graph.add("Reshape", pixels, graph.constant(np.array([-1, 1, 4, 4])))
    tokens = vision.placed(graph, vision.convolution(graph, images), 4)
    with pytest.raises(UnsupportedError, match="of 16777216 numbers at most"):
        vision.found(vision.transformer(graph, tokens))


def test_patches_that_overlap_too_much_are_refused():
    graph = GraphBuilder()
    graph.x = ir.Value(name="images", shape=ir.Shape(["B", 1, 400, 400]), type=ir.TensorType(ir.DataType.FLOAT))
    built = graph.add("Conv", graph.x, graph.constant(np.zeros((D, 1, 200, 200), np.float32)))
    patches = graph.add("Reshape", built, graph.constant(np.array([0, D, -1])))
    tokens = vision.placed(graph, graph.add("Transpose", patches, perm=[0, 2, 1]), 201 * 201)
    with pytest.raises(UnsupportedError, match="Conv_0: 201x201 patches of 40000 elements of 1 channels"):
        vision.found(vision.transformer(graph, tokens, vision.mean_token))


def mean_first(graph, stream):
    mean = graph.add("ReduceMean", stream, graph.constant(np.array([1])), keepdims=0)
    return graph.dense(vision.normal(graph, mean), vision.CLASSES)


def without_first(graph, stream):
    patches = graph.add("Gather", vision.normal(graph, stream), graph.constant(np.array([1, 2, 3, 4])), axis=1)
    return vision.mean_token(graph, patches)


def probabilities(graph, stream):
    return graph.add("Softmax", vision.first_token(graph, vision.normal(graph, stream)), axis=-1)


def not_normalised(graph, stream):
    return vision.first_token(graph, stream)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (mean_first, "expected a mean of tokens only after"),
        (without_first, "of each, of the first, or of their mean"),
        (probabilities, "is not a product of the normalised tokens"),
        (not_normalised, "are 0 normalisations"),
    ],
)
def test_what_is_no_head_is_refused(head, reason):
    graph = GraphBuilder()
    vision.images(graph)
    stream = vision.experts(graph, vision.attention(graph, embedded(graph, vision.convolution)))
    with pytest.raises(UnsupportedError) as error:
        vision.found(vision.finished(graph, head(graph, stream)))
    assert reason in str(error.value)


def test_a_stream_that_is_added_to_itself_is_no_dense_layer():
    graph = GraphBuilder()
    vision.images(graph)
    tokens = vision.attention(graph, embedded(graph, vision.convolution))
    twice = graph.add("Add", graph.add("Add", tokens, tokens), vision.normal(graph, tokens))
    with pytest.raises(UnsupportedError, match="does not take the output of the block before it"):
        vision.found(
            vision.finished(graph, vision.first_token(graph, vision.normal(graph, vision.experts(graph, twice))))
        )


def normalised_otherwise(weights, **attributes):
    """A model whose last normalisation has weights of this shape and these attributes."""
    graph = GraphBuilder()
    vision.images(graph)
    stream = vision.experts(graph, vision.attention(graph, embedded(graph, vision.convolution)))
    normal = graph.add("LayerNormalization", stream, graph.normal(*weights), **attributes)
    return vision.finished(graph, vision.first_token(graph, normal))


def test_one_weight_may_be_that_of_all_channels():
    model = normalised_otherwise((1,))
    actual = vision.found(model)
    assert len(actual.head.norm.weight) == D
    expect_the_same(model, actual, pixels() / np.float32(256))


@pytest.mark.parametrize(
    ("weights", "attributes", "reason"),
    [
        ((D,), {"axis": 1}, "more than the channels"),
        ((5, D), {"axis": 1}, "more than the channels"),
        ((D,), {"epsilon": float("nan")}, "epsilon of nan"),
        ((D,), {"epsilon": -1.0}, "epsilon of -1"),
    ],
)
def test_what_normalises_otherwise_is_refused(weights, attributes, reason):
    with pytest.raises(UnsupportedError, match=rf"node_LayerNormalization_\d+: normalises .*{reason}"):
        vision.found(normalised_otherwise(weights, **attributes))


def test_what_is_between_blocks_is_a_dense_layer_or_refused():
    graph = GraphBuilder()
    vision.images(graph)
    tokens = vision.attention(graph, embedded(graph, vision.convolution))
    cosine = vision.feed_forward(graph, tokens, lambda graph, value: graph.add("Cos", value))
    with pytest.raises(UnsupportedError, match="is not made by an activation"):
        vision.found(
            vision.finished(graph, vision.first_token(graph, vision.normal(graph, vision.experts(graph, cosine))))
        )
    graph = GraphBuilder()
    vision.images(graph)
    tokens = graph.add("Tanh", vision.attention(graph, embedded(graph, vision.convolution)))
    with pytest.raises(UnsupportedError, match="does not take the output of the block before it"):
        vision.found(
            vision.finished(graph, vision.first_token(graph, vision.normal(graph, vision.experts(graph, tokens))))
        )
