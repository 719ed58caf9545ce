from __future__ import annotations

from .before_after import check


def test_shapes_keep_the_names_of_sizes():
    check(
        "infer-shapes",
        "(float[T,4] x, float[4,8] w) => (float[A,B] y) { a = MatMul (x, w) y = Relu (a) }",
        "(float[T,4] x, float[4,8] w) => (float[A,8] y) <float[T,8] a> { a = MatMul (x, w) y = Relu (a) }",
    )


def test_known_shapes_stay():
    check("infer-shapes", "(float[T] x) => (float[T] y) <float[T] a> { a = Relu (x) y = Neg (a) }")


def test_an_unknown_size_gets_no_false_name(rewrite):
    text = "(float[T] x) => (int64[A,B] y) { n = NonZero (x) y = Neg (n) }"
    model = rewrite(text, "infer-shapes")
    assert "T" not in str(model.graph.node(0).outputs[0].shape)
