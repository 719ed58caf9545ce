"""MoE blocks in graphs: where they begin and end, and whether their numbers compute what the graph does."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.graph.calibrate import run_with
from moec.targets.hls.moe.blocks import find_blocks

from .graphs import D, E, F, GraphBuilder

T, SHARED = 5, 20
SWIGLU, RELU = ExpertsSpec("silu", "gate_up"), ExpertsSpec("relu", "none")


def silu(graph: GraphBuilder, value: ir.Value) -> ir.Value:
    return graph.add("Mul", value, graph.add("Sigmoid", value))


def shared_swiglu(graph: GraphBuilder, tokens: ir.Value) -> ir.Value:
    gate, up = graph.dense(tokens, SHARED), graph.dense(tokens, SHARED)
    return graph.dense(graph.add("Mul", silu(graph, gate), up), D, SHARED)


def block_with(
    graph: GraphBuilder, *, norm: str | None = None, shared: bool = False, experts: ExpertsSpec = SWIGLU
) -> ir.Model:
    tokens = graph.x
    if norm is not None:
        scales = [graph.normal(D)] if norm == "RMSNormalization" else [graph.normal(D), graph.normal(D)]
        tokens = graph.add(norm, graph.x, *scales)
    rows = graph.rows(tokens)
    output = graph.like_x(graph.moe(rows, graph.dense(rows, E), experts))
    if shared:
        output = graph.add("Add", output, shared_swiglu(graph, tokens))
    return graph.model(graph.add("Add", graph.x, output))


@pytest.mark.parametrize("norm", [None, "LayerNormalization", "RMSNormalization"])
@pytest.mark.parametrize("shared", [False, True])
def test_the_numbers_compute_what_the_graph_does(norm, shared):
    model = block_with(GraphBuilder(), norm=norm, shared=shared)
    x = np.random.default_rng(1).normal(0, 1, (2, T, D)).astype(np.float32)
    blocks = find_blocks(model)
    (block,) = blocks
    assert (block.numbers.norm is None) == (norm is None)
    assert block.numbers.shared == (3 if shared else 0)  # 20 hidden units in pieces of 8
    actual = run_with(model, blocks, {"x": x}, lambda _index, tokens: block.numbers.run(tokens).output)
    np.testing.assert_allclose(*actual.values(), *interpreter.run(model, {"x": x}).values(), rtol=1e-4, atol=1e-4)


def test_a_table_of_ids_is_followed():
    """In the table, experts 1 and 3 share weights, and expert 2 contributes nothing."""
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    model = graph.model(graph.like_x(graph.shared_moe(rows, graph.dense(rows, E), SWIGLU, [1, 0, -1, 0])))
    x = np.random.default_rng(1).normal(0, 1, (2, T, D)).astype(np.float32)
    (block,) = blocks = find_blocks(model)
    assert block.numbers.up.shape[0] == E
    actual = run_with(model, blocks, {"x": x}, lambda _index, tokens: block.numbers.run(tokens).output)
    np.testing.assert_allclose(*actual.values(), *interpreter.run(model, {"x": x}).values(), rtol=1e-4, atol=1e-4)


def test_a_table_of_ids_that_no_expert_has_is_refused():
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    model = graph.model(graph.shared_moe(rows, graph.dense(rows, E), SWIGLU, [0, 1, 2, 3]))
    node = next(candidate for candidate in model.graph if candidate.op_type == "Experts")
    table = node.inputs[2].producer()
    table.replace_input_with(0, graph.constant(np.array([0, 1, 9, 3, -1], np.int32)))
    with pytest.raises(UnsupportedError, match="has the id 9; expected ids below 4"):
        find_blocks(model)


def test_a_block_of_a_residual_stream_ends_with_the_addition():
    model = block_with(GraphBuilder(), norm="LayerNormalization")
    (block,) = find_blocks(model)
    assert block.tokens is model.graph.inputs[0]
    assert block.output is model.graph.outputs[0]


@pytest.mark.parametrize("shape", [(7, 1), (7, D)])
def test_a_result_that_is_scaled_by_token_ends_the_block(shape):
    graph = GraphBuilder()
    graph.x.shape = ir.Shape(["B", 7, D])
    rows = graph.rows(graph.add("LayerNormalization", graph.x, graph.normal(D)))
    result = graph.moe(rows, graph.dense(rows, E), SWIGLU)
    shaped = graph.add("Reshape", result, graph.constant(np.array([-1, 7, D])))
    model = graph.model(graph.add("Add", graph.x, graph.add("Mul", shaped, graph.normal(*shape))))
    pipeline.run(model, pipeline.parse("infer-shapes"))
    (block,) = find_blocks(model)
    assert block.numbers.norm is None


def test_a_result_that_something_else_takes_ends_the_block():
    graph = GraphBuilder()
    rows = graph.rows(graph.add("LayerNormalization", graph.x, graph.normal(D)))
    result = graph.moe(rows, graph.dense(rows, E), SWIGLU)
    total = graph.add("Add", graph.x, graph.like_x(result))
    model = graph.model(graph.add("Mul", total, graph.like_x(graph.add("Tanh", result))))
    (block,) = find_blocks(model)
    assert block.numbers.norm is None
    assert block.output is result


@pytest.mark.parametrize("other", ["of other tokens", "with another activation", "gated where experts are not"])
def test_what_is_no_shared_expert_stays_outside(other):
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    experts = RELU if other == "gated where experts are not" else SWIGLU
    result = graph.moe(rows, graph.dense(rows, E), experts)
    tokens = graph.add("Tanh", rows) if other == "of other tokens" else rows
    gate, up = graph.dense(tokens, SHARED), graph.dense(tokens, SHARED)
    gate = graph.add("Tanh", gate) if other == "with another activation" else silu(graph, gate)
    model = graph.model(graph.add("Add", result, graph.dense(graph.add("Mul", gate, up), D, SHARED)))
    (block,) = find_blocks(model)
    assert block.numbers.shared == 0
    assert block.output is result


def test_a_shared_expert_without_gate_is_found():
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    result = graph.moe(rows, graph.dense(rows, E), RELU)
    shared = graph.dense(graph.add("Relu", graph.dense(rows, F)), D, F)
    (block,) = find_blocks(graph.model(graph.add("Add", result, shared)))
    assert block.numbers.shared == 1


def test_a_router_of_other_tokens_is_refused():
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    model = graph.model(graph.moe(rows, graph.dense(graph.add("Tanh", rows), E), SWIGLU))
    with pytest.raises(UnsupportedError, match="block: its router takes"):
        find_blocks(model)


def test_logits_that_are_no_product_are_refused():
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    model = graph.model(graph.moe(rows, graph.add("Tanh", graph.dense(rows, E)), SWIGLU))
    with pytest.raises(UnsupportedError, match=r"block: .* comes from a Tanh; expected tokens @ weights"):
        find_blocks(model)
