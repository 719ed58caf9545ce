from __future__ import annotations

from .before_after import check


def test_unused_nodes_and_constants_go():
    check(
        "remove-dead-nodes",
        "(float[T] x) => (float[T] y) <float one = {1}> { y = Relu (x) a = Add (x, one) b = Exp (a) }",
        "(float[T] x) => (float[T] y) { y = Relu (x) }",
    )


def test_outputs_and_inputs_that_nobody_wants_lose_their_names():
    check(
        "remove-dead-nodes",
        "(float[T,8] x, float[8] s) => (float[T,8] y) { y, mean, spread = LayerNormalization (x, s, ) }",
        "(float[T,8] x, float[8] s) => (float[T,8] y) { y = LayerNormalization (x, s) }",
    )


def test_used_nodes_and_unused_graph_inputs_stay():
    check(
        "remove-dead-nodes",
        "(float[T] x, float[T] unused) => (float[T] y, float[T] z) { z = Exp (x) y = Relu (z) }",
    )


def test_a_node_with_one_used_output_stays():
    check("remove-dead-nodes", "(float[T] x) => (float[A] y) <int64[1] k = {2}> { y, unused = TopK (x, k) }")
