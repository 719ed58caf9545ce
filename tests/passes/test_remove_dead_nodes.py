from __future__ import annotations

import numpy as np

X = {"x": np.array([-1, 2, 3], np.float32)}


def test_unused_nodes_and_constants_go(rewrite, operators):
    text = "(float[T] x) => (float[T] y) <float one = {1}> { y = Relu (x) a = Add (x, one) b = Exp (a) }"
    model = rewrite(text, "remove-dead-nodes", X)
    assert operators(model) == ["Relu"]
    assert not model.graph.initializers


def test_used_nodes_and_unused_graph_inputs_stay(rewrite, operators):
    text = "(float[T] x, float[T] unused) => (float[T] y, float[T] z) { z = Exp (x) y = Relu (z) }"
    model = rewrite(text, "remove-dead-nodes", {**X, "unused": X["x"]})
    assert operators(model) == ["Exp", "Relu"]
    assert [value.name for value in model.graph.inputs] == ["x", "unused"]


def test_a_node_with_one_used_output_stays(rewrite, operators):
    text = "(float[T] x) => (float[A] y) <int64[1] k = {2}> { y, unused = TopK (x, k) }"
    assert operators(rewrite(text, "remove-dead-nodes", X)) == ["TopK"]
