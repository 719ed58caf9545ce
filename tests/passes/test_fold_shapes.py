from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import DefectError, MoecError

from .before_after import check

SIZES_TRIED = ((2, 3), (1, 1), (1, 7), (0, 3), (2, 0))
CASES = [{"x": np.arange(b * s * 8, dtype=np.float32).reshape(b, s, 8)} for b, s in SIZES_TRIED]
SIGNATURE = "(float[batch,seq,8] x) => (float[A,B,C,D] y)"
PASSES = "fold-shapes,simplify,eliminate-common-subexpressions,remove-dead-nodes,infer-shapes"
SIZES = "int64 zero = {0}, int64 one = {1}, int64[1] axis = {0}, int64[1] two = {2}, int64[1] four = {4}"


def test_a_chain_of_sizes_becomes_a_constant_target():
    check(
        PASSES,
        f"""{SIGNATURE} <{SIZES}> {{
            s = Shape (x) b = Gather (s, zero) q = Gather (s, one)
            b1 = Unsqueeze (b, axis) q1 = Unsqueeze (q, axis) t = Concat <axis = 0> (b1, q1, two, four)
            r = Reshape (x, t) y = Relu (r) }}""",
        """(float[batch,seq,8] x) => (float[A,B,2,4] y)
            <int64[4] r_shape = {0, 0, 2, 4}, float[batch,seq,2,4] r> {
            r = Reshape (x, r_shape) y = Relu (r) }""",
        *CASES,
    )


def test_tokens_are_flattened_with_one_open_size():
    check(
        PASSES,
        f"""(float[batch,seq,8] x) => (float[T,D] y) <{SIZES}, int64[1] eight = {{8}}> {{
            s = Shape (x) b = Gather (s, zero) q = Gather (s, one) n = Mul (b, q)
            n1 = Unsqueeze (n, axis) t = Concat <axis = 0> (n1, eight) y = Reshape (x, t) }}""",
        """(float[batch,seq,8] x) => (float[T,8] y) <int64[2] y_shape = {-1, 8}> {
            y = Reshape (x, y_shape) }""",
        *CASES[:4],  # a computed 0 copies a size: the text itself is wrong for [2,0]
    )


def test_an_open_size_is_not_used_beside_one_that_may_be_zero(rewrite, operators):
    """[0, -1, 8] would be undefined for an empty batch."""
    text = f"""(float[batch,seq,8] x) => (float[B,S,D] y) <{SIZES}> {{
        s = Shape (x) b = Gather (s, zero) q = Gather (s, one) twice = Mul (q, two)
        b1 = Unsqueeze (b, axis) t = Concat <axis = 0> (b1, twice, four) y = Reshape (x, t) }}"""
    model = rewrite(text, PASSES, *CASES)
    assert operators(model)[-1] == "Reshape"
    assert model.graph.node(-1).inputs[1].const_value is None


def test_the_where_idiom_of_expand_disappears():
    before = f"""{SIGNATURE} <{SIZES}, int64[1] minus = {{-1}}, int64[1] rank = {{3}}, int64 unit = {{1}}> {{
        s = Shape (x) filled = ConstantOfShape <value = int64[1] {{1}}> (rank) below = Mul (filled, minus)
        open = Equal (s, below) t = Where (open, filled, s) e = Expand (x, t) y = Unsqueeze (e, axis) }}"""
    after = f"(float[batch,seq,8] x) => (float[1,B,C,8] y) <{SIZES}> {{ y = Unsqueeze (x, axis) }}"
    check(PASSES, before, after, *CASES)


def test_a_list_of_no_sizes_adds_none():
    before = """(float[batch,8] x) => (float[A,B,C] y) <int64[1] zero = {0}, int64[2] parts = {2, 4}> {
        s = Shape <end = 1> (x) none = ConstantOfShape <value = int64[1] {1}> (zero)
        t = Concat <axis = 0> (none, s, parts, none) y = Reshape (x, t) }"""
    cases = [{"x": np.arange(n * 8, dtype=np.float32).reshape(n, 8)} for n in (0, 1, 3)]
    after = "(float[batch,8] x) => (float[A,2,4] y) <int64[3] y_shape = {0, 2, 4}> { y = Reshape (x, y_shape) }"
    check(PASSES, before, after, *cases)


def test_a_slice_of_sizes_with_bounds_far_outside():
    before = """(float[batch,seq,8] x) => (float[A,B,C] y) <int64[1] low = {-9223372036854775808},
        int64[1] high = {9223372036854775807}> {
        s = Shape (x) t = Slice (s, low, high) y = Reshape (x, t) }"""
    after = "(float[batch,seq,8] x) => (float[A,B,8] y) <int64[3] y_shape = {0, 0, 8}> { y = Reshape (x, y_shape) }"
    check(PASSES, before, after, *CASES)


@pytest.mark.parametrize("size", [0, -1])
def test_a_list_of_sizes_keeps_its_length_in_a_reshape(rewrite, operators, size):
    """A list of [2] sizes is reshaped to [0], which copies the length, and to [-1]."""
    text = f"""(float[batch,8] x) => (float[batch,8] y) <int64[1] same = {{{size}}}> {{
        s = Shape (x) t = Reshape (s, same) y = Reshape (x, t) }}"""
    cases = [{"x": np.arange(n * 8, dtype=np.float32).reshape(n, 8)} for n in (0, 1, 3)]
    assert operators(rewrite(text, PASSES, *cases))[-1:] in ([], ["Reshape"], ["Identity"])


@pytest.mark.parametrize("passes", [PASSES, f"{PASSES},simplify"])
def test_an_expand_to_a_size_that_may_not_fit_stays(passes):
    """N has to be 5 or 1, which is checked when the model runs."""
    text = (
        "(float[5] x, float[N] k) => (float[5] y) { s = Shape <start = 0, end = 1> (k) e = Expand (x, s) y = Neg (e) }"
    )
    cases = [{"x": np.ones(5, np.float32), "k": np.ones(count, np.float32)} for count in (1, 5)]
    check(passes, text, None, *cases)


def test_an_expand_that_repeats_stays():
    text = f"""(float[batch,seq,8] x) => (float[2,batch,seq,8] y) <{SIZES}, int64[4] t = {{2, 1, 1, 1}}> {{
        u = Unsqueeze (x, axis) y = Expand (u, t) }}"""
    check(PASSES, text, None, *CASES)


@pytest.mark.parametrize("size", [-1, 3])
def test_an_expand_to_sizes_that_nothing_has_names_the_node(rewrite, size):
    text = (
        f"(float[1] x) => (int64[A] y) <int64[2] two = {{1, 2}}, int64[1] t = {{{size}}}> {{ [n] y = Expand (two, t) }}"
    )
    with pytest.raises(MoecError, match=f"node 'n' .Expand. expands sizes .2. to .{size}.; expected sizes from 0 up"):
        rewrite(text, PASSES)


def test_what_stays_is_computed_once():
    before = """(float[batch,seq,8] x) => (int64[A] y, int64[B] z) <int64 zero = {0}, int64 one = {1}> {
        r = Relu (x) s = Shape (x) q = Gather (s, one) n = Range (zero, q, one) y = Neg (n)
        t = Shape (r) p = Gather (t, one) m = Range (zero, p, one) z = Abs (m) }"""
    after = """(float[batch,seq,8] x) => (int64[A] y, int64[B] z) <int64 zero = {0}, int64 one = {1}> {
        val_0 = Shape <start = 1, end = 2> (x) val_1 = Squeeze (val_0) n = Range (zero, val_1, one) y = Neg (n)
        z = Abs (n) }"""
    check(PASSES, before, after, *CASES)


def test_sizes_that_depend_on_data_get_names():
    before = """(float[T] x, float[T,4] w) => (float[A,B] y) <int64[1] axis = {0}> {
        n = NonZero (x) i = Squeeze (n, axis) g = Gather (w, i) y = Relu (g) }"""
    after = before.replace("A,B", "A,4").replace(
        "{0}>", "{0}, int64[1,count_0] n, int64[count_0] i, float[count_0,4] g>"
    )
    check(PASSES, before, after, {"x": np.array([0, 1, 2], np.float32), "w": np.ones((3, 4), np.float32)})


@pytest.mark.parametrize("divisor, size", [(4, "2*seq"), (8, "seq")])
def test_exact_division_of_sizes(rewrite, divisor, size):
    text = f"""(float[seq,8] x) => (float[A] y) <int64[1] d = {{{divisor}}}, int64[1] e = {{8}}, int64[1] o = {{0}}> {{
        r = Relu (x) s = Size (r) n = Div (s, d) z = ConstantOfShape (n) y = Relu (z) }}"""
    model = rewrite(text, PASSES, {"x": np.ones((3, 8), np.float32)})
    assert str(model.graph.node(-1).inputs[0].shape) == f"[{size}]"


@pytest.mark.parametrize("passes", ["", "O2"])
def test_an_expand_that_changes_nothing_may_be_an_output(rewrite, operators, passes):
    text = "(float[batch,seq,8] x) => (float[batch,seq,8] y) { a = Neg (x) s = Shape (a) y = Expand (a, s) }"
    model = rewrite(text, f"{PASSES},{passes}" if passes else PASSES, *CASES)
    assert "Expand" not in operators(model)


def test_sizes_that_leave_64_bits_are_not_folded(rewrite, operators):
    """A program wraps around; a folded size would not."""
    text = f"""(float[batch,seq,8] x) => (int64 y) <{SIZES}, int64 big = {{4611686018427387904}}> {{
        s = Shape (x) b = Gather (s, zero) p = Mul (b, big) q = Mul (p, big) y = Add (q, one) }}"""
    model = rewrite(text, PASSES, *CASES)
    assert operators(model)[-2:] == ["Mul", "Add"]


def test_a_product_of_sizes_that_leaves_64_bits_wraps_around(rewrite, operators):
    text = f"""(float[2,3] x) => (int64 y) <{SIZES}, int64 big = {{4611686018427387904}}> {{
        s = Shape (x) b = Gather (s, zero) p = Mul (b, big) y = Add (p, one) }}"""
    assert operators(rewrite(text, PASSES, {"x": np.ones((2, 3), np.float32)})) == ["Mul", "Add"]


@pytest.mark.parametrize(("factor", "folded"), [(2000000, False), (100, True)])
@pytest.mark.parametrize("wide", ["Identity", "Cast <to = 7>"])
def test_a_sign_that_4_bytes_may_lose_is_not_folded(rewrite, operators, factor, folded, wide):
    """1,100 sequences make the product negative, which no size is."""
    kind = "int64" if "7" in wide else "int32"
    text = f"""(float[batch,seq,8] x) => (bool y) <{SIZES}, int32 many = {{{factor}}}, {kind} none = {{0}}> {{
        s = Shape (x) b = Gather (s, zero) b4 = Cast <to = 6> (b) p4 = Mul (b4, many) p = {wide} (p4)
        y0 = Less (p, none) y = Not (y0) }}"""
    cases = [*CASES, {"x": np.zeros((1100, 1, 8), np.float32)}]
    assert ("Less" not in operators(rewrite(text, PASSES, *cases))) == folded


def test_a_range_of_more_numbers_than_python_counts(rewrite, operators):
    text = f"""(float[batch,seq,8] x) => (float[A] y) <{SIZES}, int64 far = {{-9223372036854775807}}> {{
        s = Shape (x) b = Gather (s, zero) none = Mul (b, zero) last = Sub (none, far)
        r = Range (last, far, one) c = Cast <to = 1> (r) y = Relu (c) }}"""
    assert "Relu" in operators(rewrite(text, PASSES))


def test_the_first_node_may_disappear():
    """Sizes are written at the start of the graph, wherever that is by then."""
    check(
        "fold-shapes,remove-dead-nodes",
        """(float[batch,8] x) => (float[B,8] y)
            <int64 zero = {0}, int64[1] two = {2}, int64[1] eight = {8}, int64[2] fits = {1, 1}, float[1,8] row> {
            e = Expand (x, fits) s = Shape (e) b = Gather (s, zero) n = Mul (b, two)
            t = Concat <axis = 0> (n, eight) r = Expand (row, t) y = Concat <axis = 0> (e, r) }""",
        """(float[batch,8] x) => (float[B,8] y) <int64[1] size_2 = {2}, int64[1] size_8 = {8}, float[1,8] row> {
            val_0 = Shape <end = 1, start = 0> (x) val_1 = Mul (size_2, val_0)
            val_2 = Concat <axis = 0> (val_1, size_8) r = Expand (row, val_2) y = Concat <axis = 0> (x, r) }""",
        *({"x": np.ones((count, 8), np.float32)} for count in (0, 1, 3)),
    )


@pytest.mark.parametrize("step", ["Add (v{}, w)", "Add (v{}, v{})"], ids=["long", "each read twice"])
def test_a_chain_of_sums_as_long_as_a_model_is_deep(rewrite, operators, step):
    """Neither deeper than Python calls go, nor followed along each of its many ways."""
    chain = " ".join(f"v{n + 1} = {step.format(n, n)}" for n in range(1500))
    text = f"(float[seq,8] x) => (float[seq,8] y) {{ w = Neg (x) v0 = Abs (x) {chain} y = Relu (v1500) }}"
    assert operators(rewrite(text, "infer-shapes,fold-shapes")).count("Add") == 1500


def test_a_size_that_is_read_twice_at_every_step(rewrite, operators):
    chain = " ".join(f"v{n + 1} = Add (v{n}, v{n})" for n in range(40))
    text = f"""(float[seq,8] x) => (float[A] y) <int64 zero = {{0}}, int64 one = {{1}}> {{
        v0 = Shape <start = 0, end = 1> (x) {chain} t = Squeeze (v40) r = Range (zero, t, one)
        c = Cast <to = 1> (r) y = Relu (c) }}"""
    assert "Relu" in operators(rewrite(text, PASSES))


@pytest.mark.parametrize(
    ("node", "constants"),
    [
        ("Tile (x, a)", "int64[1] a = {2}"),
        ("Tile (x, a)", "int64[3] a = {1, 1, 2}"),
        ("Slice (x, a, b, c)", "int64[1] a = {0}, int64[1] b = {2}, int64[1] c = {7}"),
        ("Slice (x, a, b, c)", "int64[1] a = {0}, int64[2] b = {2, 2}, int64[1] c = {1}"),
        ("Pad (x, a)", "int64[3] a = {1, 1, 1}"),
        ("If <then_branch = p () => (u) { u = Abs (f) }, else_branch = q () => (v) { v = Neg (f) }> (f)",
         "float[2] f = {0, 1}"),
    ],
)  # fmt: skip
def test_nodes_that_contradict_their_operator_are_refused(node, constants):
    """Bounds, repeats and conditions that do not fit: the sizes are not told, and the model is none."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[N,2] x) => (float[M,K] y) <{constants}> {{ y = {node} }}'
    )
    with pytest.raises(MoecError) as caught:
        moec.compile(proto)
    assert not isinstance(caught.value, DefectError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "weights", "attributes", "expected"),
    [
        ("1,8,T", "8,1,4", "group = 8, pads = [3, 0]", "[1,8,T]"),
        ("1,2,T,5", "6,2,2,3", "pads = [1, 0, 3, 5], dilations = [1, 2]", "[1,6,T + 3,6]"),
        ("1,2,T", "6,2,2", "strides = [2]", "[1,6,unk__0]"),
        ("1,2,T", "6,2,2", 'auto_pad = "SAME_UPPER"', "[1,6,unk__0]"),
    ],
)
def test_a_convolution_of_step_1_keeps_the_name_of_a_length(sizes, weights, attributes, expected, rewrite):
    text = f"(float[{sizes}] x, float[{weights}] w) => (float y) {{ a = Conv <{attributes}> (x, w) y = Relu (a) }}"
    assert str(rewrite(text, "infer-shapes,fold-shapes").graph.node(0).outputs[0].shape) == expected
