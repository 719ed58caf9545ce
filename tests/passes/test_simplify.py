from __future__ import annotations

import numpy as np
import pytest

X = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
EMPTY = {"x": np.zeros((0, 3, 4), np.float32)}
SIGNATURE = "(float[T,3,4] x) => (float[A,B,C] y)"


@pytest.mark.parametrize(
    "constants, body",
    [
        ("", "a = Identity (r)"),
        ("", "a = Cast <to = 1> (r)"),
        ("", "a = Dropout (r)"),
        ("int64[1] s = {0}, int64[1] e = {9223372036854775807}, int64[1] axes = {1}", "a = Slice (r, s, e, axes)"),
        ("int64[1] s = {0}, int64[1] e = {4}, int64[1] axes = {2}", "a = Slice (r, s, e, axes)"),
        ("int64[1] s = {-4}, int64[1] e = {9}, int64[1] axes = {2}", "a = Slice (r, s, e, axes)"),
        ("", "b = Transpose <perm = [1,2,0]> (r) a = Transpose <perm = [2,0,1]> (b)"),
        ("int64[1] axis = {1}", "b = Unsqueeze (r, axis) a = Squeeze (b, axis)"),
        ("int64[2] ones = {1, 1}", "a = Expand (r, ones)"),
        ("int64[2] same = {3, 1}", "a = Expand (r, same)"),
        ("", "b = Transpose (r) a = Transpose (b)"),
        ("", "b = Transpose (r) a = Transpose <perm = [2,1,0]> (b)"),
        ("float share = {0.5}, bool training = {0}", "a = Dropout (r, share, training)"),
        ("", "a = Concat <axis = 1> (r)"),
    ],
)
def test_a_no_op_disappears(rewrite, operators, constants, body):
    text = f"{SIGNATURE} <{constants}> {{ r = Relu (x) {body} y = Neg (a) }}"
    model = rewrite(text, "infer-shapes,simplify,remove-dead-nodes", X, EMPTY)
    assert operators(model) == ["Relu", "Neg"]


@pytest.mark.parametrize(
    "constants, body, kept",
    [
        ("", "b = Cast <to = 10> (r) a = Cast <to = 1> (b)", ["Cast", "Cast"]),
        ("int64[1] s = {1}, int64[1] e = {9}, int64[1] axes = {1}", "a = Slice (r, s, e, axes)", ["Slice"]),
        ("int64[1] s = {0}, int64[1] e = {3}, int64[1] axes = {0}", "a = Slice (r, s, e, axes)", ["Slice"]),
        (
            "int64[1] s = {-1}, int64[1] e = {-9}, int64[1] axes = {2}, int64[1] step = {-1}",
            "a = Slice (r, s, e, axes, step)",
            ["Slice"],
        ),
        ("", "a = Transpose <perm = [0,2,1]> (r)", ["Transpose"]),
        ("int64[1] i = {1}, int64[1] j = {0}", "b = Unsqueeze (r, i) a = Unsqueeze (b, j)", ["Unsqueeze", "Unsqueeze"]),
        ("int64[4] more = {1, 1, 1, 1}", "a = Expand (r, more)", ["Expand"]),
        ("int64[2] p = {-1, 4}, int64[3] q = {0, 2, 2}", "b = Reshape (r, p) a = Reshape (b, q)", ["Reshape"] * 2),
    ],
)  # fmt: skip
def test_what_does_something_stays(rewrite, operators, constants, body, kept):
    signature = SIGNATURE if kept not in (["Expand"], ["Unsqueeze", "Unsqueeze"]) else "(float[T,3,4] x) => (float y)"
    text = f"{signature} <{constants}> {{ r = Relu (x) {body} y = Neg (a) }}"
    model = rewrite(text, "infer-shapes,simplify,remove-dead-nodes")
    assert operators(model) == ["Relu", *kept, "Neg"]


@pytest.mark.parametrize("known", [True, False])
def test_a_dropout_in_training_or_perhaps_in_training_stays(rewrite, operators, known):
    given, constants = ("", "bool training = {1}, ") if known else (", bool training", "")
    text = f"""(float[T,3,4] x{given}) => (float[T,3,4] y) <{constants}float share = {{0.5}}> {{
        r = Relu (x) a = Dropout (r, share, training) y = Neg (a) }}"""
    assert operators(rewrite(text, "simplify,remove-dead-nodes")) == ["Relu", "Dropout", "Neg"]


def test_axes_that_come_and_others_that_go_stay(rewrite, operators):
    text = """(float[T,1] x) => (float[A,B] y) <int64[1] first = {0}, int64[1] last = {2}> {
        r = Relu (x) a = Unsqueeze (r, first) b = Squeeze (a, last) y = Neg (b) }"""
    model = rewrite(text, "infer-shapes,simplify,remove-dead-nodes", {"x": np.ones((3, 1), np.float32)})
    assert operators(model) == ["Relu", "Unsqueeze", "Squeeze", "Neg"]


def test_two_transposes_and_two_reshapes_become_one(rewrite, operators):
    text = """(float[T,3,4] x) => (float[A,B] y) <int64[2] p = {-1, 2}, int64[2] q = {-1, 6}> {
        a = Transpose <perm = [1,0,2]> (x) b = Transpose <perm = [2,1,0]> (a)
        c = Reshape (b, p) y = Reshape (c, q) }"""
    model = rewrite(text, "simplify,remove-dead-nodes", X, EMPTY)
    assert operators(model) == ["Transpose", "Reshape"]
    assert list(model.graph.node(0).attributes["perm"].as_ints()) == [2, 0, 1]


def test_a_graph_output_keeps_its_name(rewrite, operators):
    model = rewrite("(float[T] x) => (float[T] y) { y = Identity (x) }", "simplify", {"x": np.ones(2, np.float32)})
    assert operators(model) == ["Identity"]
    model = rewrite("(float[T] x) => (float[T] y) { a = Neg (x) y = Identity (a) }", "simplify")
    assert operators(model) == ["Neg"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_dropout_with_a_used_mask_stays(rewrite, operators):
    text = "(float[T] x) => (float[T] y, bool[T] mask) { y, mask = Dropout (x) }"
    assert operators(rewrite(text, "simplify")) == ["Dropout"]
