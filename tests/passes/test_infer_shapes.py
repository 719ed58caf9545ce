from __future__ import annotations


def test_shapes_keep_the_names_of_sizes(rewrite):
    text = "(float[T,4] x, float[4,8] w) => (float[A,B] y) { a = MatMul (x, w) y = Relu (a) }"
    model = rewrite(text, "infer-shapes")
    assert str(model.graph.node(0).outputs[0].shape) == "[T,8]"


def test_an_unknown_size_gets_no_false_name(rewrite):
    text = "(float[T] x) => (int64[A,B] y) { n = NonZero (x) y = Neg (n) }"
    model = rewrite(text, "infer-shapes")
    assert "T" not in str(model.graph.node(0).outputs[0].shape)
