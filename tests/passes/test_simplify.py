from __future__ import annotations

import numpy as np
import pytest

from .before_after import assert_shown, check

X = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
EMPTY = {"x": np.zeros((0, 3, 4), np.float32)}
SIGNATURE = "(float[T,3,4] x) => (float[T,3,4] y)"
PASSES = "infer-shapes,simplify,remove-dead-nodes"


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
        ("float one = {1}", "a = Mul (r, one)"),
        ("float[4] ones = {1, 1, 1, 1}", "a = Mul (ones, r)"),
        ("float one = {1}", "a = Div (r, one)"),
        ("float one = {1}", "a = Pow (r, one)"),
        ("float[1] zero = {0}", "a = Add (zero, r)"),
        ("float zero = {0}", "a = Sub (r, zero)"),
        ("int64[6] pads = {0, 0, 0, 0, 0, 0}", "a = Pad (r, pads)"),
        ("int64[1] axis = {1}", "b = Unsqueeze (r, axis) c = ReduceSum (b, axis) a = Squeeze (c, axis)"),
        ("int64[1] axis = {1}", "b = Unsqueeze (r, axis) a = ReduceMean <keepdims = 0> (b, axis)"),
        ("", "b = Neg (r) a = Neg (b)"),
        ("bool yes = {1}, float zero = {0}", "a = Where (yes, r, zero)"),
        ("bool[4] no = {0, 0, 0, 0}, float zero = {0}", "a = Where (no, zero, r)"),
    ],
)
def test_a_no_op_disappears(constants, body):
    before = f"{SIGNATURE} <{constants}> {{ r = Relu (x) {body} y = Neg (a) }}"
    check(PASSES, before, f"{SIGNATURE} {{ r = Relu (x) y = Neg (r) }}", X, EMPTY)


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
        ("", "b = Cos (r) a = Transpose <perm = [0,2,1]> (b)", ["Cos", "Transpose"]),
        ("float two = {2}", "a = Mul (two, r)", ["Mul"]),
        ("float one = {1}", "a = Div (one, r)", ["Div"]),
        ("float zero = {0}", "a = Sub (zero, r)", ["Sub"]),
        ("float[2,1,1,1] ones = {1, 1}", "b = Mul (r, ones) a = ReduceMax <keepdims = 0> (b)", ["Mul", "ReduceMax"]),
        ("int64[6] pads = {0, 0, 0, 0, 0, 1}", "a = Pad (r, pads)", ["Pad"]),
        ("int64[1] axis = {1}", "a = ReduceSum (r, axis)", ["ReduceSum"]),
        ("", "a = ReduceSum (r)", ["ReduceSum"]),
        ("", "a = ReduceSum <noop_with_empty_axes = 0, keepdims = 1> (r)", ["ReduceSum"]),
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


@pytest.mark.parametrize("bounds", ["int64[1] s = {-1}, int64[1] e = {9}", "int64[1] s = {0}, int64[1] e = {-1}"])
def test_a_slice_that_leaves_something_out_stays_whatever_is_declared(rewrite, operators, bounds):
    model = f"(float[B,T] x) => (float[B,T] y) <{bounds}, int64[1] axes = {{1}}> {{ y = Slice (x, s, e, axes) }}"
    assert operators(rewrite(model, PASSES)) == ["Slice"]


@pytest.mark.parametrize("bounds", ["z, n, axes", "n, e, axes", "z, e, n"])
def test_a_slice_with_bounds_that_only_data_have_goes_where_the_shape_stays(rewrite, operators, bounds):
    constants = "int64[1] z = {0}, int64[1] e = {9}, int64[1] axes = {1}"
    model = f"(float[B,T] x, int64[1] n) => (float[B,T] y) <{constants}> {{ r = Relu (x) y = Slice (r, {bounds}) }}"
    assert operators(rewrite(model, PASSES)) == ["Relu"]


@pytest.mark.parametrize("known", [True, False])
def test_a_dropout_in_training_or_perhaps_in_training_stays(rewrite, known):
    given, constants = ("", "bool training = {1}, ") if known else (", bool training", "")
    text = f"""(float[T,3,4] x{given}) => (float[T,3,4] y) <{constants}float share = {{0.5}}> {{
        r = Relu (x) a = Dropout (r, share, training) y = Neg (a) }}"""
    assert_shown(rewrite(text, "simplify,remove-dead-nodes"), text)


def test_axes_that_come_and_others_that_go_stay():
    check(
        "simplify,remove-dead-nodes",
        """(float[T,1] x) => (float[A,B] y) <int64[1] first = {0}, int64[1] last = {2}> {
            r = Relu (x) a = Unsqueeze (r, first) b = Squeeze (a, last) y = Neg (b) }""",
    )


def test_two_transposes_and_two_reshapes_become_one():
    check(
        "simplify,remove-dead-nodes",
        """(float[T,3,4] x) => (float[A,B] y) <int64[2] p = {-1, 2}, int64[2] q = {-1, 6}> {
            a = Transpose <perm = [1,0,2]> (x) b = Transpose <perm = [2,1,0]> (a)
            c = Reshape (b, p) y = Reshape (c, q) }""",
        """(float[T,3,4] x) => (float[A,B] y) <int64[2] q = {-1, 6}> {
            b = Transpose <perm = [2,0,1]> (x) y = Reshape (b, q) }""",
        *(X, EMPTY),
    )


@pytest.mark.parametrize(("target", "stays"), [("Shape (r)", False), ("Shape (z)", True)])
def test_reshapes_that_lead_back_to_a_shape_go(target, stays):
    """Unless the shape is another."""
    signature = "(float[A,B] x, float[B,A] z) => (float[C,D] y) <int64[1] p = {-1}>"
    last = "a = Reshape (f, s) y = Neg (a)"
    before = f"{signature} {{ r = Relu (x) f = Reshape (r, p) s = {target} {last} }}"
    after = before if stays else f"{signature} {{ r = Relu (x) y = Neg (r) }}".replace(" <int64[1] p = {-1}>", "")
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "z": np.zeros((3, 2), np.float32)}
    check("infer-shapes,simplify,remove-dead-nodes", before, after, feeds)


def test_a_graph_output_keeps_its_name():
    check(
        PASSES,
        "(float[T] x) => (float[T] y) { a = Neg (x) y = Identity (a) }",
        "(float[T] x) => (float[T] y) { y = Neg (x) }",
    )


def test_an_input_that_is_an_output_keeps_both_names():
    check("simplify", "(float[T] x) => (float[T] y) { y = Identity (x) }")


def test_dropout_with_a_used_mask_stays():
    check("simplify", "(float[T] x) => (float[T] y, bool[T] mask) { y, mask = Dropout (x) }")


def test_a_transpose_goes_before_what_keeps_places():
    before = "(float[T,3] x) => (float[3,T] y) { s = Softmax <axis = 1> (x) y = Transpose <perm = [1,0]> (s) }"
    after = "(float[T,3] x) => (float[3,T] y) { val_0 = Transpose <perm = [1,0]> (x) y = Softmax <axis = 0> (val_0) }"
    check(PASSES, before, after, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_sibling_whose_result_has_another_user_stays(rewrite, operators):
    text = """(float[T,3] x) => (float[3,T] y, float[T,3] z) {
        s = Softmax <axis = 1> (x) y = Transpose <perm = [1,0]> (s) z = Neg (s)
    }"""
    assert operators(rewrite(text, PASSES)) == ["Softmax", "Transpose", "Neg"]


def test_equal_transposes_go_before_what_keeps_places(rewrite, operators):
    text = """(float[4,T] x) => (float[T,4] y, float[T,4] z) {
        s = Softmax <axis = 0> (x) a = Transpose <perm = [1,0]> (s) y = Relu (a) z = Transpose <perm = [1,0]> (s)
    }"""
    feeds = {"x": np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)}
    assert operators(rewrite(text, PASSES, feeds)) == ["Transpose", "Softmax", "Relu"]


@pytest.mark.parametrize(("before", "after"), [("Sub (x, n)", "Add (x, x)"), ("Add (n, x)", "Sub (x, x)")])
def test_a_negative_is_added_without_its_sign(before, after):
    signature = "(float[T] x) => (float[T] y)"
    feeds = {"x": np.arange(3, dtype=np.float32)}
    check(PASSES, f"{signature} {{ n = Neg (x) y = {before} }}", f"{signature} {{ y = {after} }}", feeds)


def test_a_vector_is_not_subtracted_but_its_negative_added():
    signature = "(float[T,2] x) => (float[T,2] y)"
    before = f"{signature} <float[2] v = {{1, -2}}> {{ y = Sub (x, v) }}"
    after = f"{signature} <float[2] v_negative = {{-1, 2}}> {{ y = Add (x, v_negative) }}"
    check(PASSES, before, after, {"x": np.ones((3, 2), np.float32)})


def test_sibling_a_number_stays_subtracted():
    check(PASSES, "(float[T] x) => (float[T] y) <float v = {1}> { y = Sub (x, v) }")


SIGNATURE_OF_THREE = "(float[T,E] a, float[T] b, float[T,E,D] c) => (float[T,D] y)"


@pytest.mark.parametrize("equation", ["te,t,ted->td", "t,te,ted->td"])
def test_small_operands_of_an_einsum_are_multiplied_first(equation):
    feeds = {
        name: np.random.default_rng(0).normal(size=(3, 2, 4)[:rank]) for name, rank in (("a", 2), ("b", 1), ("c", 3))
    }
    operands = "a, b, c" if equation.startswith("te,") else "b, a, c"
    check(
        PASSES,
        f'{SIGNATURE_OF_THREE} {{ y = Einsum <equation = "{equation}"> ({operands}) }}',
        f"""{SIGNATURE_OF_THREE} <int64[1] b_spread_axes = {{1}}> {{
            b_spread = Unsqueeze (b, b_spread_axes)
            a_times = Mul (a, b_spread)
            y = Einsum <equation = "te,ted->td"> (a_times, c) }}""",
        {name: array.astype(np.float32) for name, array in feeds.items()},
    )


@pytest.mark.parametrize("equation", ["te,dt,ted->td", "te,tf,ted->td"])
def test_sibling_whose_product_would_be_larger_or_turned_stays(equation):
    a, b, c = (
        f"float[{','.join(term.upper())}] {name}" for name, term in zip("abc", equation[:-4].split(","), strict=True)
    )
    y = ",".join(equation[-2:].upper())
    feeds = {
        name: np.ones([2] * len(term), np.float32) for name, term in zip("abc", equation[:-4].split(","), strict=True)
    }
    text = f'({a}, {b}, {c}) => (float[{y}] y) {{ y = Einsum <equation = "{equation}"> (a, b, c) }}'
    check(PASSES, text, None, feeds)
