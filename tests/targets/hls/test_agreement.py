"""The comparison of float forms with the graph on calibration data: misread numbers are noticed, and parts that the
data does not exercise are named."""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.attention.agreement import attention_agreement
from moec.targets.hls.graph.agreement import BOUND, Agreement, unseen
from moec.targets.hls.graph.calibrate import run_floats, unrounded
from moec.targets.hls.moe.agreement import experts_agreement
from moec.targets.hls.moe.blocks import find_blocks

from .graphs import D, E, GraphBuilder
from .test_attention_graph import found_in, rotary
from .test_blocks import block_with

TOKENS = np.random.default_rng(1).normal(size=(2, 9, D)).astype(np.float32)


def attention(graph=None, tokens=TOKENS, *, layout="halves", positions=64):
    """An attention block as it is found, and the graph's tokens and results."""
    graph = graph or GraphBuilder()
    model, (block,), _ = found_in(graph, rotary(graph, layout, norm=True))
    seen = run_floats(model, [block], {"x": tokens})
    return block, seen.tokens[0], seen.results[0]


def experts(tokens=TOKENS, **parts):
    model = block_with(GraphBuilder(), **parts)
    pipeline.run(model, pipeline.parse("infer-shapes"))
    (block,) = find_blocks(model)
    seen = run_floats(model, [block], {"x": tokens})
    return block, seen.tokens[0], seen.results[0]


def with_angle(numbers):
    angles = 1.01 * np.arctan2(numbers.turns.sines, numbers.turns.cosines)
    return dataclasses.replace(
        numbers, turns=dataclasses.replace(numbers.turns, cosines=np.cos(angles), sines=np.sin(angles))
    )


def with_epsilon(numbers):
    return dataclasses.replace(numbers, norm=dataclasses.replace(numbers.norm, epsilon=1e-3))


def with_epsilon_of_rows(numbers):
    return dataclasses.replace(numbers, key_norm=dataclasses.replace(numbers.key_norm, epsilon=1e-2))


@pytest.mark.parametrize(
    "fault",
    [
        with_angle,
        with_epsilon,
        with_epsilon_of_rows,
        lambda numbers: dataclasses.replace(numbers, scale=numbers.scale * 1.01),
        lambda numbers: dataclasses.replace(numbers, causal=False),
        lambda numbers: dataclasses.replace(numbers, value=numbers.value[:, ::-1]),
    ],
    ids=["angle", "epsilon", "epsilon of rows", "scale", "mask", "order of values"],
)
def test_attention_that_is_read_wrongly_is_refused_with_both_figures(fault):
    block, tokens, output = attention()
    actual = attention_agreement(block, tokens, output)
    assert actual.largest < BOUND / 10
    assert actual.tokens == 18
    broken = dataclasses.replace(block, numbers=fault(block.numbers))
    with pytest.raises(UnsupportedError, match=rf"{block.name}: .* is \S+; expected \S+ within"):
        attention_agreement(broken, tokens, output)


@pytest.mark.parametrize(
    "fault",
    [
        lambda numbers: dataclasses.replace(numbers, gate=numbers.up, up=numbers.gate),
        lambda numbers: dataclasses.replace(numbers, routing=dataclasses.replace(numbers.routing, normalize=False)),
        lambda numbers: dataclasses.replace(numbers, router=numbers.router[::-1]),
        lambda numbers: dataclasses.replace(numbers, shared=0, up=numbers.up[:E], gate=numbers.gate[:E]),
        with_epsilon,
    ],
    ids=["gate and up", "gates", "order of experts", "shared", "epsilon"],
)
def test_experts_that_are_read_wrongly_are_refused_with_both_figures(fault):
    block, tokens, output = experts(norm="RMSNormalization", shared=True)
    assert experts_agreement(block, tokens, output).largest < BOUND / 10
    broken = dataclasses.replace(block, numbers=fault(block.numbers))
    with pytest.raises(UnsupportedError, match=r"block: .* differs from the graph: channel"):
        experts_agreement(broken, tokens, output)


def test_a_fault_in_what_is_added_to_large_tokens_is_noticed():
    """The results are a millionth of the tokens."""
    block, tokens, output = experts(TOKENS * 1e4, norm="RMSNormalization")
    experts_agreement(block, tokens, output)
    scaled = dataclasses.replace(block, numbers=block.numbers.scaled(np.full(D, 1.01, np.float32)))
    with pytest.raises(UnsupportedError, match="the float form of the block differs from the graph"):
        experts_agreement(scaled, tokens, output)


def test_angles_that_change_with_the_length_are_seen_where_the_data_is_as_long(monkeypatch):
    """Angles are read at 8 positions, but the graph uses other angles for sequences of more than 16 tokens."""
    monkeypatch.setattr("moec.targets.hls.attention.rows._expect_agreement", lambda *_: None)
    graph = GraphBuilder()
    model, (block,), _ = found_in(graph, rotary(graph, "long"))
    long = np.random.default_rng(2).normal(size=(2, 20, D)).astype(np.float32)
    for tokens, noticed in ((TOKENS, True), (long, False)):
        seen = run_floats(model, [block], {"x": tokens})
        if noticed:
            with pytest.raises(UnsupportedError, match="the float form of the block differs from the graph"):
                attention_agreement(block, seen.tokens[0], seen.results[0])
        else:
            assert (
                "sequences of other lengths than 20"
                in attention_agreement(block, seen.tokens[0], seen.results[0]).unseen
            )


def test_what_the_data_does_not_show_is_said():
    block, tokens, output = attention()
    assert attention_agreement(block, tokens, output).unseen == (
        "sequences of other lengths than 9",
        "positions from 9 on",
    )
    block, tokens, output = experts(TOKENS[:1, :1])
    chosen = block.numbers.chosen(tokens)[0]
    missing = ", ".join(str(expert) for expert in range(E) if expert not in chosen)
    actual = experts_agreement(block, tokens, output)
    assert actual.unseen == (f"experts {missing}, which no token chose",)
    both = unseen([actual, dataclasses.replace(actual, node="other"), Agreement("third", 0.0, BOUND, 1)])
    assert both is not None and both.endswith(f"experts {missing}, which no token chose (block and 1 more)")
    assert unseen([]) is None


def test_what_a_graph_rounds_is_compared_unrounded():
    model = block_with(
        GraphBuilder(), norm="RMSNormalization", experts=ExpertsSpec("silu", "gate_up", arithmetic="int8")
    )
    (block,), data = find_blocks(model), {"x": TOKENS}
    rounded = run_floats(model, [block], data)
    with pytest.raises(UnsupportedError):
        experts_agreement(block, rounded.tokens[0], rounded.results[0])
    with unrounded(model) as differs:
        exact = run_floats(model, [block], data)
    assert differs
    assert experts_agreement(block, exact.tokens[0], exact.results[0]).largest < BOUND / 10
    again = run_floats(model, [block], data)
    np.testing.assert_array_equal(again.results[0], rounded.results[0])
    with unrounded(block_with(GraphBuilder())) as differs:
        assert not differs


def test_a_near_tie_may_go_to_either_expert():
    block, tokens, output = experts()
    twice = dataclasses.replace(
        block.numbers, router=np.repeat(block.numbers.router[:1], E, axis=0), router_bias=np.zeros(E)
    )
    tied = dataclasses.replace(block, numbers=twice)
    actual = experts_agreement(tied, tokens, output)
    assert actual.unseen[-1] == "18 tokens, whose choice of experts is a near tie or rounding"


def test_few_tokens_are_compared_as_far_as_they_go():
    for count in (0, 1):
        block, tokens, output = attention(tokens=TOKENS[:, :count])
        assert attention_agreement(block, tokens, output).tokens == 2 * count
    block, tokens, output = experts()
    assert experts_agreement(block, tokens[:0], output[:0]).tokens == 0


def rounded_experts(dtype, norm: bool, scale: float):
    """Experts of a model in mixed precision, which compute in ``dtype`` after a cast, and the graph's tokens and
    results."""
    graph = GraphBuilder()
    tokens = graph.add("RMSNormalization", graph.x, graph.normal(D)) if norm else graph.x
    graph.dtype = dtype
    rows = graph.rows(graph.add("Cast", tokens, to=ir.DataType.from_numpy(np.dtype(dtype))))
    sums = graph.moe(rows, graph.dense(rows, E), ExpertsSpec("silu", "gate_up"))
    model = graph.model(graph.add("Add", graph.x, graph.add("Cast", graph.like_x(sums), to=ir.DataType.FLOAT)))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    (block,) = find_blocks(model)
    samples = scale * np.random.default_rng(0).normal(size=(8, 40, D)).astype(np.float32)
    seen = run_floats(model, [block], {"x": samples})
    return block, seen.tokens[0], seen.results[0]


@pytest.mark.parametrize("scale", [1, 30])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_what_16_bits_round_is_no_fault(dtype, norm, scale):
    """Rounding is allowed in results, and in logits, where it decides near ties and changes gates."""
    block, tokens, output = rounded_experts(dtype, norm, scale)
    assert experts_agreement(block, tokens, output).tokens > 250
    scaled = dataclasses.replace(block, numbers=block.numbers.scaled(np.full(D, 1.1, np.float32)))
    with pytest.raises(UnsupportedError, match="the float form of the block differs from the graph"):
        experts_agreement(scaled, tokens, output)


def test_numbers_that_are_not_finite_are_those_of_the_data():
    block, tokens, output = experts()
    with pytest.raises(UnsupportedError, match=r"block: the graph computes numbers that are not finite"):
        experts_agreement(block, tokens, np.full_like(output, np.inf))
