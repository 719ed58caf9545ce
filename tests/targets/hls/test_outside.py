"""The nodes of a model outside of projects, counted by hand, and the reason why a model has no project."""

from __future__ import annotations

import pathlib

import numpy as np
import onnx
import pytest

from moec.common.errors import UnsupportedError
from moec.compiling import compiler
from moec.compiling.compile_options import CompileOptions
from moec.ir.dialect import ExpertsSpec
from moec.passes import pipeline
from moec.targets.hls.graph.outside import find_outside
from moec.targets.hls.moe.blocks import find_blocks
from moec.targets.hls.options import HlsOptions

from .graphs import D, E, F, GraphBuilder

DIGITS = pathlib.Path(__file__).parents[3] / "examples" / "digits"
EXPERTS = ExpertsSpec("relu", "none")
TOKENS = 6


def graph_with_a_head(width: int) -> tuple[GraphBuilder, object]:
    """A MoE block of TOKENS tokens between an activation and a dense layer."""
    graph = GraphBuilder()
    rows = graph.rows(graph.add("Relu", graph.x))
    block = graph.moe(rows, graph.dense(rows, E), EXPERTS)
    return graph, graph.model(graph.dense(block, width))


@pytest.mark.parametrize("width", [3, 40])
def test_operations_outside_are_listed_with_their_share(width):
    _, model = graph_with_a_head(width)
    pipeline.run(model, pipeline.parse("O1"))
    feeds = {model.graph.inputs[0]: np.zeros((2, TOKENS // 2, D), np.float32)}
    actual = find_outside(model, find_blocks(model), feeds)
    relu, product, added = TOKENS * D, 2 * TOKENS * D * width, TOKENS * width
    router = 2 * TOKENS * D * E + TOKENS * E
    total = relu + product + added + router + 2 * TOKENS * 2 * 2 * D * F
    assert {operator.operator: operator.operations for operator in actual.operators} == {
        "Relu": relu,
        "MatMul": product,
        "Add": added,
    }
    assert actual.share == pytest.approx((relu + product + added) / total)
    assert actual.operators[0].operator == "MatMul"
    assert actual.unknown == ()
    assert f"{actual.share:.1%} of the operations are in no project: 1 MatMul (" in str(actual)


def test_nothing_is_outside_of_a_model_that_is_a_block():
    graph = GraphBuilder()
    rows = graph.rows(graph.x)
    model = graph.model(graph.like_x(graph.moe(rows, graph.dense(rows, E), EXPERTS)))
    pipeline.run(model, pipeline.parse("O1"))
    actual = find_outside(model, find_blocks(model), {model.graph.inputs[0]: np.zeros((1, 4, D), np.float32)})
    assert (actual.operators, actual.share) == ((), 0)


def test_nodes_of_unknown_sizes_are_named():
    _, model = graph_with_a_head(3)
    actual = find_outside(model, find_blocks(model), {model.graph.inputs[0]: np.zeros((2, 3, D), np.float32)})
    assert actual.operators == ()
    assert len(actual.unknown) == 6  # seven nodes, except the one that only moves data


def test_a_model_that_was_not_raised_says_why(tmp_path: pathlib.Path):
    """In these experts of the digits example, a token's result depends on the other tokens."""
    model = onnx.load(DIGITS / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "Relu" and node.output[0] != "relu":
            node.op_type = "Softmax"
            node.attribute.append(onnx.helper.make_attribute("axis", 0))
    options = HlsOptions(dict(np.load(DIGITS / "calibration.npz")), max_tokens=8)
    with pytest.raises(UnsupportedError, match=r"has no MoE block; .*; raise-moe: .*: left as ordinary operators: "):
        compiler.write(model, tmp_path / "never.moec", CompileOptions(target="hls:zcu102", target_options=options))
