"""Attention blocks in graphs: blocks that are found compute what the graph does, and other graphs are refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import InputError
from moec.common.specs import State
from moec.ir import interpreter
from moec.ir.states import set_states
from moec.passes import pipeline
from moec.targets.hls.attention.graph import find_attention
from moec.targets.hls.attention_block import expect_whole_sequences
from moec.targets.hls.graph.calibrate import feeds_of
from moec.targets.hls.options import HlsOptions

from .graphs import D, GraphBuilder

HEADS, CHANNELS = 3, 4
FLAT = {"q_num_heads": HEADS, "kv_num_heads": HEADS}


def flat_heads(graph: GraphBuilder, tokens: ir.Value, **attributes) -> ir.Value:
    """Attention with three products, whose operator splits heads itself."""
    query, key, value = (graph.dense(tokens, HEADS * CHANNELS) for _ in range(3))
    return graph.add("Attention", query, key, value, **FLAT, **attributes)


def split_heads(graph: GraphBuilder, tokens: ir.Value) -> ir.Value:
    """Attention with one product, whose results are cut into queries, keys and values, and into heads."""
    parts = graph.add(
        "Reshape", graph.dense(tokens, 3 * HEADS * CHANNELS), graph.constant(np.array([0, -1, 3, HEADS, CHANNELS]))
    )
    moved = graph.add("Transpose", parts, perm=[2, 0, 3, 1, 4])
    rows = [graph.add("Gather", moved, graph.constant(np.array(part)), axis=0) for part in (2, 0, 1)]
    attended = graph.add("Transpose", graph.add("Attention", *rows, scale=0.3), perm=[0, 2, 1, 3])
    return graph.add("Reshape", attended, graph.constant(np.array([0, -1, HEADS * CHANNELS])))


def normalized(graph: GraphBuilder) -> ir.Value:
    return graph.add("LayerNormalization", graph.x, graph.normal(D), graph.normal(D))


def found_in(graph: GraphBuilder, heads: ir.Value, passes: str = "infer-shapes"):
    model = graph.model(graph.add("Add", graph.dense(heads, D), graph.x))
    pipeline.run(model, pipeline.parse(passes))
    return model, *find_attention(model)


@pytest.mark.parametrize("heads", [flat_heads, split_heads])
@pytest.mark.parametrize("norm", ["LayerNormalization", "RMSNormalization"])
def test_the_numbers_compute_what_the_graph_does(heads, norm):
    graph = GraphBuilder()
    scales = [graph.normal(D)] if norm == "RMSNormalization" else [graph.normal(D), graph.normal(D)]
    model, (block,), refused = found_in(graph, heads(graph, graph.add(norm, graph.x, *scales)))
    assert refused == []
    assert (block.tokens, block.output) == (model.graph.inputs[0], model.graph.outputs[0])
    x = np.random.default_rng(1).normal(size=(2, 5, D)).astype(np.float32)
    (expected,) = interpreter.run(model, {"x": x}).values()
    np.testing.assert_allclose(block.numbers.run(x).output, expected, atol=2e-5)


@pytest.mark.parametrize("tokens", [1, 5])
def test_a_fixed_number_of_tokens_is_probed_call_by_call(tokens):
    graph = GraphBuilder()
    graph.x.shape = ir.Shape([1, tokens, D])
    _, (block,), refused = found_in(graph, split_heads(graph, normalized(graph)))
    assert refused == []
    assert block.numbers.query.shape == (HEADS, CHANNELS, D)


@pytest.mark.parametrize("mask", [np.ones((1, 1, 5, 5), bool), np.zeros(5, np.float32)])
def test_a_mask_that_masks_nothing_is_none(mask):
    graph = GraphBuilder()
    graph.x.shape = ir.Shape(["B", 5, D])
    _, actual, refused = found_in(graph, with_mask(graph, repeated(graph, mask)))
    assert (len(actual), refused) == (1, [])


def by_position(graph: GraphBuilder) -> ir.Value:
    """Tokens scaled by their positions, which is not a rotary embedding."""
    tokens = normalized(graph)
    count = graph.add("Gather", graph.add("Shape", graph.x), graph.constant(np.array(1)), axis=0)
    places = graph.add(
        "Cast", graph.add("Range", graph.constant(np.array(0)), count, graph.constant(np.array(1))), to=1
    )
    return graph.add("Mul", tokens, graph.add("Unsqueeze", places, graph.constant(np.array([0, 2]))))


def with_mask(graph: GraphBuilder, mask: ir.Value) -> ir.Value:
    tokens = normalized(graph)
    query, key, value = (graph.dense(tokens, HEADS * CHANNELS) for _ in range(3))
    return graph.add("Attention", query, key, value, mask, **FLAT)


def repeated(graph: GraphBuilder, row: object) -> ir.Value:
    """A mask that is repeated for each image."""
    count = graph.add("Shape", graph.x, end=1)
    return graph.add("Expand", graph.constant(row), graph.add("Concat", count, graph.constant(np.ones(3, int)), axis=0))


def of_tokens(graph: GraphBuilder) -> ir.Value:
    """A mask of zeros that depends on the numbers of tokens."""
    zeros = graph.add("Mul", graph.add("ReduceMin", graph.x, keepdims=0), graph.constant(np.float32(0)))
    return graph.add("Reshape", zeros, graph.constant(np.array([1, 1])))


def grouped(graph: GraphBuilder, count: int = 1) -> ir.Value:
    tokens = normalized(graph)
    rows = [graph.dense(tokens, heads * CHANNELS) for heads in (HEADS, count, count)]
    return graph.add("Attention", *rows, q_num_heads=HEADS, kv_num_heads=count, is_causal=1)


def positions_of(graph: GraphBuilder, axes: list[int]) -> ir.Value:
    count = graph.add("Gather", graph.add("Shape", graph.x), graph.constant(np.array(1)), axis=0)
    places = graph.add("Range", graph.constant(np.array(0)), count, graph.constant(np.array(1)))
    return graph.add("Unsqueeze", places, graph.constant(np.array(axes)))


def window(graph: GraphBuilder, most: int, of_blocks: bool = False) -> ir.Value:
    """A causal mask in which a query sees the last ``most`` keys, or those of its own block of ``most`` positions."""
    if of_blocks:
        blocks = [graph.add("Div", positions_of(graph, [axis]), graph.constant(np.array(most))) for axis in (1, 0)]
        seen = graph.add("LessOrEqual", positions_of(graph, [0]), positions_of(graph, [1]))
        return graph.add("And", seen, graph.add("Equal", *blocks))
    distance = graph.add("Sub", positions_of(graph, [1]), positions_of(graph, [0]))
    ahead = graph.add("Less", distance, graph.constant(np.array(0)))
    far = graph.add("Less", graph.constant(np.array(most - 1)), distance)
    return graph.add("Not", graph.add("Or", ahead, far))


def behind_sinks(graph: GraphBuilder, sinks=0.5, fill=0.0, of_tokens=False) -> ir.Value:
    """Attention with an additional first key and value of ``fill``, whose score is ``sinks`` plus the number of the
    head; without a mask if ``sinks`` is None."""
    tokens = normalized(graph)
    heads = [graph.dense(tokens, HEADS * CHANNELS) for _ in range(3)]
    shape, front = graph.constant(np.array([0, -1, HEADS, CHANNELS])), graph.constant(np.array([1, 0]))
    rows = [graph.add("Transpose", graph.add("Reshape", value, shape), perm=[0, 2, 1, 3]) for value in heads]
    axes = [graph.constant(np.array([axis])) for axis in (2, 3)]
    padded = [graph.add("Pad", value, front, graph.constant(np.float32(fill)), axes[0]) for value in rows[1:]]
    operands = [rows[0], *padded]
    if sinks is not None:
        bias = graph.add("Where", window(graph, 99), graph.constant(np.float32(0)), graph.constant(np.float32(-1e30)))
        mask = graph.add("Pad", graph.add("Unsqueeze", bias, graph.constant(np.array([0, 1]))), front, None, axes[1])
        column = graph.constant((np.arange(HEADS) + sinks).astype(np.float32).reshape(1, HEADS, 1, 1))
        if of_tokens:
            column = graph.add("Mul", column, graph.add("ReduceMax", graph.x, keepdims=0))
        count = graph.add("Shape", rows[1], start=2, end=3)
        pads = graph.add("Concat", graph.constant(np.array([0])), count, axis=0)
        operands.append(graph.add("Add", mask, graph.add("Pad", column, pads, None, axes[1])))
    attended = graph.add("Transpose", graph.add("Attention", *operands), perm=[0, 2, 1, 3])
    return graph.add("Reshape", attended, graph.constant(np.array([0, -1, HEADS * CHANNELS])))


def turned(graph: GraphBuilder, heads: ir.Value, layout: str, base: float = 0.3) -> ir.Value:
    """The rotary embedding of heads [B, H, T, 4]: of halves, of neighbours, or only of the first two channels."""
    pairs = 1 if layout == "part" else 2
    steps = graph.constant(np.array([1.0, base], np.float32)[:pairs])
    if layout == "long":  # other angles for all positions once a sequence is long
        count = graph.add("Gather", graph.add("Shape", graph.x), graph.constant(np.array(1)), axis=0)
        is_long = graph.add("Less", graph.constant(np.array(16)), count)
        steps = graph.add("Where", is_long, graph.constant(np.array([0.5, base / 2], np.float32)), steps)
    angles = graph.add("Mul", graph.add("Cast", positions_of(graph, [1]), to=1), steps)
    cosine, sine = graph.add("Cos", angles), graph.add("Sin", angles)
    step, second = (2, 1) if layout == "neighbours" else (1, pairs)
    ends = [graph.constant(np.array([end])) for end in (0, second, *((4, 4) if step == 2 else (pairs, 2 * pairs)))]
    last, by = graph.constant(np.array([3])), graph.constant(np.array([step]))
    even, odd = (graph.add("Slice", heads, ends[place], ends[place + 2], last, by) for place in range(2))
    x = graph.add("Sub", graph.add("Mul", even, cosine), graph.add("Mul", odd, sine))
    y = graph.add("Add", graph.add("Mul", even, sine), graph.add("Mul", odd, cosine))
    if layout == "neighbours":
        apart = graph.constant(np.array([-1]))
        both = graph.add("Concat", graph.add("Unsqueeze", x, apart), graph.add("Unsqueeze", y, apart), axis=-1)
        return graph.add("Reshape", both, graph.constant(np.array([0, 0, -1, CHANNELS])))
    rest = [graph.add("Slice", heads, ends[3], graph.constant(np.array([4])), last)] if layout == "part" else []
    return graph.add("Concat", x, y, *rest, axis=-1)


def rotary(graph: GraphBuilder, layout="halves", norm=False, shape="heads", other=0.3, of_keys=True) -> ir.Value:
    """The attention of a decoder with rotary embeddings, and with norms of each head's row (``norm``) or of all heads
    together (``shape`` "rows"). Other shapes: "grouped" heads, "latents", and norms of "pairs" of heads."""
    tokens = normalized(graph)
    parts = []
    for place, count in enumerate((HEADS, 1 if shape == "grouped" else HEADS, 1 if shape == "grouped" else HEADS)):
        rows = graph.dense(tokens, count * CHANNELS)
        if shape == "rows" and place < 2:
            rows = graph.add("RMSNormalization", rows, graph.normal(count * CHANNELS))
        if shape == "latents":
            latents = graph.add("RMSNormalization", graph.dense(tokens, 9), graph.normal(9))
            rows = graph.add("MatMul", latents, graph.normal(9, count * CHANNELS))
            if norm == "beside":
                rows = graph.add("Add", rows, graph.dense(tokens, count * CHANNELS))
            if norm and place:  # only queries are products of latents
                rows = graph.dense(tokens, count * CHANNELS)
        if shape == "pairs" and place < 2:  # normalise 6 channels, one and a half heads
            split = graph.add("Reshape", rows, graph.constant(np.array([0, -1, 2, 6])))
            rows = graph.add("RMSNormalization", split, graph.normal(6))
        heads = graph.add("Reshape", rows, graph.constant(np.array([0, -1, count, CHANNELS])))
        if norm and place < 2 and shape != "latents":
            heads = graph.add("RMSNormalization", heads, graph.normal(CHANNELS))
        heads = graph.add("Transpose", heads, perm=[0, 2, 1, 3])
        if place == 0 or (place == 1 and of_keys):
            heads = turned(graph, heads, layout, other if place else 0.3)
        parts.append(heads)
    attended = graph.add("Transpose", graph.add("Attention", *parts, is_causal=1), perm=[0, 2, 1, 3])
    return graph.add("Reshape", attended, graph.constant(np.array([0, -1, HEADS * CHANNELS])))


@pytest.mark.parametrize("most", [99, 3])
def test_masks_that_are_raised_are_the_same(most):
    graph = GraphBuilder()
    passes = "fold-shapes,raise-masks,fold-shapes"
    model, actual, refused = found_in(graph, with_mask(graph, window(graph, most)), passes)
    (attention,) = [node for node in model.graph if node.op_type == "Attention"]
    assert refused == []
    assert attention.attributes.get_int("is_causal", 0) == 1
    assert (actual[0].numbers.causal, actual[0].numbers.window) == (True, most if most < 64 else 0)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (grouped, {"causal": True, "sharing": 3}),
        (lambda graph: with_mask(graph, window(graph, 99)), {"causal": True, "sharing": 1, "window": 0}),
        (lambda graph: with_mask(graph, window(graph, 3)), {"causal": True, "window": 3}),
        (rotary, {"causal": True}),
        (lambda graph: rotary(graph, "neighbours", norm=True), {"causal": True}),
        (lambda graph: rotary(graph, "part", shape="grouped"), {"sharing": 3}),
        (lambda graph: rotary(graph, shape="rows"), {"joint_norm": True}),
        (behind_sinks, {"causal": True, "window": 0}),
        (lambda graph: behind_sinks(graph, sinks=np.array([0, -np.inf, 60])), {"causal": True}),
    ],
)
def test_attention_of_decoders_computes_what_the_graph_does(build, expected):
    graph = GraphBuilder()
    model, actual, refused = found_in(graph, build(graph))
    assert refused == []
    assert {name: getattr(actual[0].numbers, name) for name in expected} == expected
    x = np.random.default_rng(1).normal(size=(2, 9, D)).astype(np.float32)
    (output,) = interpreter.run(model, {"x": x}).values()
    np.testing.assert_allclose(actual[0].numbers.run(x).output, output, atol=5e-5)


@pytest.mark.parametrize(
    ("heads", "reason"),
    [
        (lambda graph: flat_heads(graph, normalized(graph), softcap=20.0), "softcap is 20"),
        (lambda graph: with_mask(graph, repeated(graph, np.eye(5)[1] > 0)), "for 1 tokens; expected 1 keys"),
        (lambda graph: with_mask(graph, graph.constant(np.eye(5, dtype=np.float32))), "for 1 tokens; expected 1 keys"),
        (lambda graph: with_mask(graph, of_tokens(graph)), "depends on the numbers of 'x'"),
        (lambda graph: with_mask(graph, window(graph, 3, of_blocks=True)), "shows or weakens key 0 to query 1"),
        (lambda graph: behind_sinks(graph, fill=1.0), "for 1 tokens; expected 1 keys"),
        (lambda graph: behind_sinks(graph, of_tokens=True), "depends on the numbers of 'x'"),
        (lambda graph: behind_sinks(graph, sinks=np.inf), "expected one score per head"),
        (lambda graph: behind_sinks(graph, sinks=None), "expected a mask with their scores"),
        (lambda graph: with_mask(graph, window(graph, -1)), "hides key 0 to query 0"),
        (lambda graph: rotary(graph, other=1.1), "different rotary embeddings"),
        (lambda graph: rotary(graph, "long"), "in sequences of 8 tokens"),
        (lambda graph: rotary(graph, of_keys=False), "only one of its queries and keys has a rotary embedding"),
        (lambda graph: rotary(graph, shape="latents"), "keys and values, and at most another one of queries"),
        (
            lambda graph: rotary(graph, norm=True, shape="latents"),
            "9 channels before a second product, which makes 3 rows of 4",
        ),
        (lambda graph: rotary(graph, norm="beside", shape="latents"), "normalises a part of the inputs"),
        (lambda graph: rotary(graph, shape="pairs"), "normalises 6 channels; expected 4, those of a head, or those of"),
        (lambda graph: grouped(graph, 2), "3 heads of queries and 2 of keys"),
        (lambda graph: flat_heads(graph, by_position(graph)), "is not computed from|more than a product per token"),
        (lambda graph: flat_heads(graph, graph.add("Tanh", normalized(graph))), "more than a product per token"),
        (
            lambda graph: flat_heads(graph, graph.x),
            "come from no normalisation; expected LayerNormalization or RMSNormalization",
        ),
        (lambda graph: graph.add("Tanh", flat_heads(graph, normalized(graph))), "more than a product per token"),
    ],
)
def test_what_the_templates_do_not_compute_is_refused(heads, reason):
    graph = GraphBuilder()
    _, actual, refused = found_in(graph, heads(graph))
    assert actual == []
    (message,) = refused
    assert any(part in message for part in reason.split("|"))


def test_keys_of_earlier_tokens_are_those_of_a_cache():
    """The graph takes earlier keys as inputs before its own; the block computes a sequence without earlier tokens."""
    graph = GraphBuilder()
    tokens = normalized(graph)
    pasts = [
        ir.Value(name=name, shape=ir.Shape(["B", HEADS, "P", CHANNELS]), type=graph.x.type)
        for name in ("keys", "values")
    ]
    heads = []
    for place in range(3):
        rows = graph.add("Reshape", graph.dense(tokens, 12), graph.constant(np.array([0, -1, HEADS, CHANNELS])))
        moved = graph.add("Transpose", rows, perm=[0, 2, 1, 3])
        heads.append(graph.add("Concat", pasts[place - 1], moved, axis=2) if place else moved)
    mask = graph.add("Not", graph.add("Less", positions_of(graph, [1]), positions_of(graph, [0])))
    attended = graph.add("Transpose", graph.add("Attention", *heads, mask), perm=[0, 2, 1, 3])
    flat = graph.add("Reshape", attended, graph.constant(np.array([0, -1, 12])))
    model = graph.model(graph.add("Add", graph.dense(flat, D), graph.x))
    model.graph.inputs.extend(pasts)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    (block,), refused = find_attention(model)
    assert refused == []
    assert block.past == tuple(pasts)
    x = np.random.default_rng(1).normal(size=(2, 9, D)).astype(np.float32)
    nothing = np.zeros((2, HEADS, 0, CHANNELS), np.float32)
    (expected,) = interpreter.run(model, {"x": x, "keys": nothing, "values": nothing}).values()
    np.testing.assert_allclose(block.numbers.run(x).output, expected, atol=5e-5)
    expect_whole_sequences(block, HlsOptions({"x": x, "keys": nothing, "values": nothing}))
    with pytest.raises(
        InputError, match=r"of 3 earlier tokens; expected none; leave all such inputs out, and give sequences from"
    ):
        expect_whole_sequences(block, HlsOptions({"x": x, "values": np.zeros((2, HEADS, 3, CHANNELS), np.float32)}))
    with pytest.raises(InputError, match="input 'keys' is missing"):
        feeds_of(model, {"x": x})
    set_states(model, [State(name, f"all_{name}", 2) for name in ("keys", "values")])
    assert [feeds_of(model, {"x": x})[past].shape for past in pasts] == [(2, HEADS, 0, CHANNELS)] * 2


def test_positions_may_be_the_sum_of_a_mask(monkeypatch):
    graph = GraphBuilder()
    mask = ir.Value(name="mask", shape=ir.Shape(["B", "S"]), type=ir.TensorType(ir.DataType.INT64))

    def summed(graph: GraphBuilder, axes: list[int]) -> ir.Value:
        counts = graph.add("CumSum", mask, graph.constant(np.array(1)))
        places = graph.add("Sub", counts, graph.constant(np.array(1)))
        row = graph.add("Gather", places, graph.constant(np.array(0)), axis=0)
        return graph.add("Unsqueeze", row, graph.constant(np.array(axes)))

    monkeypatch.setitem(globals(), "positions_of", summed)
    heads = rotary(graph)
    model = graph.model(graph.add("Add", graph.dense(heads, D), graph.x))
    model.graph.inputs.append(mask)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    (block,), refused = find_attention(model)
    assert refused == []
    x = np.random.default_rng(1).normal(size=(1, 9, D)).astype(np.float32)
    (expected,) = interpreter.run(model, {"x": x, "mask": np.ones((1, 9), np.int64)}).values()
    np.testing.assert_allclose(block.numbers.run(x).output, expected, atol=5e-5)


def test_a_result_that_is_not_added_to_its_tokens_is_refused():
    graph = GraphBuilder()
    model = graph.model(graph.dense(flat_heads(graph, normalized(graph)), D))
    actual, (message,) = find_attention(model)
    assert actual == []
    assert "not added to its input tokens" in message
