"""Both ends of a decoder in graphs: the embedding table of ids, and the head of each token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from moec.common.errors import UnsupportedError
from moec.ir import interpreter
from moec.targets.hls.graph.calibrate import evaluate
from moec.targets.hls.model.head import find_token_head
from moec.targets.hls.model.token_table import find_token_table

from .graphs import D, GraphBuilder

IDS, CLASSES = 11, 30


class Decoder(GraphBuilder):
    """A graph from ``ids`` [B, S] to tokens and from tokens to logits, without layers in between."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = ir.Value(name="ids", shape=ir.Shape(["B", "S"]), type=ir.TensorType(ir.DataType.INT64))

    def rows(self) -> ir.Value:
        return self.add("Gather", self.normal(IDS, D), self.ids)

    def places(self) -> ir.Value:
        """The positions 0, 1, ... of a sequence's tokens."""
        length = self.add("Gather", self.add("Shape", self.ids), self.constant(np.array(1)))
        return self.add("Range", self.constant(np.array(0)), length, self.constant(np.array(1)))

    def normalized(self, stream: ir.Value, operator: str = "RMSNormalization") -> ir.Value:
        return self.add(operator, stream, self.normal(D))

    def of(self, *outputs: ir.Value) -> ir.Model:
        graph = ir.Graph(
            [self.ids], list(outputs), nodes=self.nodes, initializers=self.constants, opset_imports={"": 24, "moec": 1}
        )
        return ir.Model(graph, ir_version=10)


def scaled(graph: Decoder) -> ir.Value:
    return graph.add("Mul", graph.rows(), graph.constant(np.float32(3.5)))


def placed(graph: Decoder) -> ir.Value:
    return graph.add("Add", graph.rows(), graph.add("Gather", graph.normal(300, D), graph.places()))


def summed(graph: Decoder) -> ir.Value:
    return graph.add("CumSum", graph.rows(), graph.constant(np.array(1)))


@pytest.mark.parametrize("embed", [Decoder.rows, scaled])
def test_rows_that_ids_choose_are_a_table(embed):
    graph = Decoder()
    stream = embed(graph)
    model = graph.of(stream)
    actual = find_token_table(model, stream)
    ids = np.random.default_rng(0).integers(0, IDS, (3, 5))
    (expected,) = interpreter.run(model, {"ids": ids}).values()
    assert (actual.tokens.name, actual.rows.shape) == ("ids", (IDS, D))
    np.testing.assert_array_equal(actual.rows[ids], expected)


@pytest.mark.parametrize("embed", [placed, summed])
def test_what_positions_or_other_tokens_move_is_no_table(embed):
    graph = Decoder()
    stream = embed(graph)
    assert find_token_table(graph.of(stream), stream) is None


def test_tokens_that_are_given_have_no_table():
    graph = GraphBuilder()
    stream = graph.add("Mul", graph.x, graph.constant(np.float32(2)))
    assert find_token_table(graph.model(stream), stream) is None


def test_the_head_is_of_the_output_that_is_made_of_all_tokens():
    """The other output is keys; logits are scaled after the product."""
    graph = Decoder()
    stream = graph.rows()
    keys = graph.dense(stream, 5)
    product = graph.dense(graph.normalized(stream), CLASSES)
    logits = graph.add("Div", product, graph.constant(np.float32(8)))
    model = graph.of(keys, logits)
    result, head = find_token_head(model, stream, model.graph.outputs, D, 4)
    ids = np.random.default_rng(0).integers(0, IDS, (2, 4))
    tokens, expected = evaluate(model, {graph.ids: ids}, [stream, logits])
    assert (result is logits, head.pool, head.norm.kind) == (True, "none", "rms")
    np.testing.assert_allclose(head.products(tokens), expected, atol=1e-5)


def capped(graph: Decoder, stream: ir.Value) -> ir.Value:
    return graph.add("Tanh", graph.dense(graph.normalized(stream), CLASSES))


def of_the_last(graph: Decoder, stream: ir.Value) -> ir.Value:
    last = graph.add("Gather", stream, graph.constant(np.array([-1])), axis=1)
    return graph.dense(graph.normalized(last), CLASSES)


def last_logits(graph: Decoder, stream: ir.Value) -> ir.Value:
    logits = graph.dense(graph.normalized(stream), CLASSES)
    return graph.add("Gather", logits, graph.constant(np.array([-1])), axis=1)


def normalized_twice(graph: Decoder, stream: ir.Value) -> ir.Value:
    return graph.dense(graph.normalized(graph.normalized(stream)), CLASSES)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (capped, "is more than a product per token"),
        (of_the_last, "are none; expected one"),
        (last_logits, rf"of \d+ tokens it makes \[1, 1, {CLASSES}\]"),
        (normalized_twice, "with 2; expected one"),
    ],
)
def test_other_heads_are_refused(head, said):
    graph = Decoder()
    stream = graph.rows()
    model = graph.of(head(graph, stream))
    with pytest.raises(UnsupportedError, match=said):
        find_token_head(model, stream, model.graph.outputs, D, 4)
