from __future__ import annotations

from .before_after import assert_shown, check

NAME = "eliminate-common-subexpressions"


def test_equal_computations_become_one():
    check(
        NAME,
        "(float[T] x) => (float[T] y) { a = Relu (x) b = Relu (x) c = Exp (a) d = Exp (b) y = Add (c, d) }",
        "(float[T] x) => (float[T] y) { a = Relu (x) c = Exp (a) y = Add (c, c) }",
    )


def test_equal_small_constants_become_one():
    check(
        NAME,
        """(float[T] x) => (float[T] y) <float one = {1}, float uno = {1}> {
            a = Add (x, one) b = Add (x, uno) y = Mul (a, b) }""",
        "(float[T] x) => (float[T] y) <float one = {1}> { a = Add (x, one) y = Mul (a, a) }",
    )


def test_other_attributes_inputs_or_constants_stay():
    check(
        NAME,
        """(float[T] x) => (float[T] y) <float one = {1}, float two = {2}> {
            a = Elu <alpha = 1.0> (x) b = Elu <alpha = 2.0> (x) c = Add (a, one) d = Add (b, two) e = Add (c, d)
            y = Sub (e, a) }""",
    )


def test_random_operators_stay(rewrite):
    text = "(float[T] x) => (float[T] y) { a = RandomNormalLike (x) b = RandomNormalLike (x) y = Sub (a, b) }"
    assert_shown(rewrite(text, NAME), text)


def test_both_names_of_an_output_stay():
    check(
        NAME,
        "(float[T] x) => (float[T] y, float[T] z) { y = Relu (x) z = Relu (x) }",
        "(float[T] x) => (float[T] y, float[T] z) { y = Relu (x) z = Identity (y) }",
    )
