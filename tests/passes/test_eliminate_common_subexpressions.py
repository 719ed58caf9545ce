from __future__ import annotations

import numpy as np

X = {"x": np.array([-1, 2, 3], np.float32)}
NAME = "eliminate-common-subexpressions"


def test_equal_computations_become_one(rewrite, operators):
    text = "(float[T] x) => (float[T] y) { a = Relu (x) b = Relu (x) y = Add (a, b) }"
    assert operators(rewrite(text, NAME, X)) == ["Relu", "Add"]


def test_equal_small_constants_become_one(rewrite, operators):
    text = """(float[T] x) => (float[T] y) <float one = {1}, float uno = {1}> {
        a = Add (x, one) b = Add (x, uno) y = Mul (a, b) }"""
    assert operators(rewrite(text, NAME, X)) == ["Add", "Mul"]


def test_other_attributes_inputs_or_constants_stay(rewrite, operators):
    text = """(float[T] x) => (float[T] y) <float one = {1}, float two = {2}> {
        a = Elu <alpha = 1.0> (x) b = Elu <alpha = 2.0> (x) c = Add (a, one) d = Add (b, two) e = Add (c, d)
        y = Sub (e, a) }"""
    assert operators(rewrite(text, NAME, X)) == ["Elu", "Elu", "Add", "Add", "Add", "Sub"]


def test_random_operators_stay(rewrite, operators):
    text = "(float[T] x) => (float[T] y) { a = RandomNormalLike (x) b = RandomNormalLike (x) y = Sub (a, b) }"
    assert operators(rewrite(text, NAME)) == ["RandomNormalLike", "RandomNormalLike", "Sub"]


def test_both_names_of_an_output_stay(rewrite):
    model = rewrite("(float[T] x) => (float[T] y, float[T] z) { y = Relu (x) z = Relu (x) }", NAME, X)
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
