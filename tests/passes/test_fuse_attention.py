from __future__ import annotations

import numpy as np
import pytest

from .before_after import check

RANDOM = np.random.default_rng(0)
PASSES = "infer-shapes,fuse-attention,simplify,remove-dead-nodes"
CONSTANTS = """<float root = {2.0}, float scale = {0.25}, int64[1] one = {1}, int64[1] two = {2},
    int64[5] wide = {2, 2, 2, 7, 4}, int64[4] joined = {2, 4, 7, 4}>"""


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def cases() -> list[dict[str, np.ndarray]]:
    return [
        {"q": normal(B, 2, S, 4), "k": normal(B, 2, P, 4), "v": normal(B, 2, P, 3), "mask": normal(S, P)}
        for B, S, P in ((1, 1, 1), (2, 5, 7))
    ]


def graph(body: str) -> str:
    return f"""(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask) => (float[B,2,S,3] y)
        {CONSTANTS} {{ {body} }}"""


SWAP = "t = Transpose <perm = [0, 1, 3, 2]> (k)"
END = "y = MatMul (p, v)"


@pytest.mark.parametrize(
    "scores",
    [
        "s = MatMul (q, t) a = Mul (s, scale)",
        "s = MatMul (q, t) a = Div (s, root)",
        "u = Mul (scale, q) a = MatMul (u, t)",
        "u = Mul (q, scale) w = Mul (t, scale) a = MatMul (u, w)",
        "a = MatMul (q, t)",
    ],
)
@pytest.mark.parametrize("mask", ["m = Add (a, mask)", "m = Add (mask, a)", "m = Identity (a)"])
def test_attention_is_fused(rewrite, operators, scores, mask):
    passes = f"simplify,{PASSES}"
    model = rewrite(graph(f"{SWAP} {scores} {mask} p = Softmax <axis = -1> (m) {END}"), passes, *cases())
    assert [operator for operator in operators(model) if operator != "Transpose"] == ["Attention"]


def test_scale_and_mask_are_those_of_attention():
    body = f"{SWAP} u = Mul (q, scale) s = MatMul (u, t) a = Div (s, root) m = Add (mask, a)"
    check(
        PASSES,
        graph(f"{body} p = Softmax <axis = -1> (m) {END}"),
        graph("y = Attention <scale = 0.125> (q, k, v, mask)"),
        *cases(),
    )


GROUPED = "(float[2,4,S,4] q, float[2,2,7,4] k, float[2,2,7,4] v) => (float[2,4,S,4] y)"


def repeated(axis: str) -> str:
    """Attention whose keys and values are repeated along a new axis first."""
    return f"""{GROUPED} {CONSTANTS} {{
        k1 = Unsqueeze (k, {axis}) k2 = Expand (k1, wide) k3 = Reshape (k2, joined)
        v1 = Unsqueeze (v, {axis}) v2 = Expand (v1, wide) v3 = Reshape (v2, joined)
        t = Transpose <perm = [0, 1, 3, 2]> (k3) s = MatMul (q, t) p = Softmax <axis = -1> (s) y = MatMul (p, v3) }}"""


def test_repeated_heads_are_taken_unrepeated():
    check(PASSES, repeated("two"), f"{GROUPED} {{ y = Attention <scale = 1.0> (q, k, v) }}")


def test_heads_repeated_in_another_order_stay_repeated(rewrite, operators):
    case = {"q": normal(2, 4, 5, 4), "k": normal(2, 2, 7, 4), "v": normal(2, 2, 7, 4)}
    assert operators(rewrite(repeated("one"), PASSES, case)).count("Reshape") == 2


@pytest.mark.parametrize(
    "body",
    [
        f"{SWAP} s = MatMul (q, t) p = Softmax <axis = 2> (s) {END}",
        f"{SWAP} s = MatMul (q, t) r = Relu (s) p = Softmax <axis = -1> (r) {END}",
        f"{SWAP} s = MatMul (q, t) e = Softmax <axis = -1> (s) p = Mul (e, e) {END}",
        f"{SWAP} s = MatMul (q, t) p = Softmax <axis = -1> (s) n = MatMul (p, v) w = ReduceSum <keepdims = 1> (p) "
        "y = Add (n, w)",
    ],
    ids=["other axis", "scores changed", "weights changed", "weights used twice"],
)
def test_what_only_looks_like_attention_stays(body):
    check(PASSES, graph(body), None, *cases())


def with_sinks(cut: str = "zero, minus_one, three", joined: str = "m, wide", top: str = "minus_one") -> str:
    """Attention with a sink for each head, as PyTorch exports that of gpt-oss."""
    return f"""(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask, float[1,2,1,1] sinks)
            => (float[B,2,S,3] y)
        <int64[1] zero = {{0}}, int64[1] minus_one = {{-1}}, int64[1] three = {{3}}, int64[1] two = {{2}},
         int64[1] start = {{1}}, int64[1] far = {{9223372036854775807}}> {{
        t = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, t) m = Add (s, mask)
        some = Shape <end = 3> (q) one = Shape <start = 3> (sinks)
        shape = Concat <axis = 0> (some, one) wide = Expand (sinks, shape)
        c = Concat <axis = -1> ({joined}) top = ReduceMax <keepdims = 1> (c, {top}) d = Sub (c, top)
        p = Softmax <axis = -1> (d) r = Slice (p, {cut}) y = MatMul (r, v) }}"""


def test_sinks_are_a_key_of_zeros():
    values = [{**case, "sinks": normal(1, 2, 1, 1)} for case in cases()]
    after = """(float[B,2,S,4] q, float[B,2,P,4] k, float[B,2,P,3] v, float[S,P] mask, float[1,2,1,1] sinks)
            => (float[B,2,S,3] y)
        <int64[2] numbers = {1, 0}, int64[1] numbers_2 = {2}, int64[1] numbers_3 = {0}, int64[1] numbers_4 = {3},
         int64[1] numbers_5 = {1}> {
        v_keys_behind_sink = Pad (k, numbers, "", numbers_2)
        v_values_behind_sink = Pad (v, numbers, "", numbers_2)
        v_key_count = Shape <end = 3, start = 2> (k)
        v_behind_sinks = Concat <axis = 0> (numbers_3, v_key_count)
        v_sinks = Pad (sinks, v_behind_sinks, "", numbers_4)
        v_mask = Pad (mask, numbers, "", numbers_5)
        v_biases = Add (v_mask, v_sinks)
        y = Attention <scale = 1.0> (q, v_keys_behind_sink, v_values_behind_sink, v_biases)
    }"""
    check(PASSES, with_sinks(), after, *values)


@pytest.mark.parametrize(
    "others",
    [{"cut": "start, far, three"}, {"joined": "wide, m"}, {"top": "two"}],
    ids=["first cut", "in front", "maxima of columns"],
)
def test_columns_that_are_no_sinks_stay(others):
    text = with_sinks(**others)
    check(PASSES, text)


def guarded(guard: str) -> str:
    """Attention as PyTorch exports it: a guard against queries that see no key."""
    scores = f"{SWAP} s = MatMul (q, t) m = Add (s, mask) p = Softmax <axis = -1> (m)"
    text = graph(f"{scores} {guard} y = MatMul (g, v)")
    return text.replace("<float root", "<float zero = {0.0}, float root")


GUARD = "n = IsNaN (p) g = Where (n, zero, p)"


def test_zeros_for_queries_that_see_no_key_are_part_of_attention():
    blind = cases()
    blind[1]["mask"][2] = -np.inf
    check(PASSES, guarded(GUARD), graph("y = Attention <scale = 1.0> (q, k, v, mask)"), *blind)


@pytest.mark.parametrize(
    "guard",
    [
        "n = IsNaN (p) g = Where (n, scale, p)",
        "n = IsNaN (m) g = Where (n, zero, p)",
        "n = IsInf (p) g = Where (n, zero, p)",
        "n = IsNaN (p) g = Where (n, p, zero)",
    ],
    ids=["another number", "another value is tested", "another test", "the branches are swapped"],
)
def test_other_guards_stay(guard):
    check(PASSES, guarded(guard), None, *cases())


def swapped_in_a_view(view: str, back: str) -> str:
    return f"""(float[2,4,S,4] q, float[2,4,7,4] k, float[2,4,7,4] v) => (float[2,4,S,4] y)
        <int64[3] view = {view}, int64[4] back = {back}> {{
        k1 = Reshape (k, view) k2 = Transpose <perm = [0, 2, 1]> (k1) t = Reshape (k2, back)
        s = MatMul (q, t) p = Softmax <axis = -1> (s) y = MatMul (p, v) }}"""


def test_keys_may_be_swapped_in_a_view():
    text = swapped_in_a_view("{8, 7, 4}", "{2, 4, 4, 7}")
    check(PASSES, text, text.partition("<")[0] + "{ y = Attention <scale = 1.0> (q, k, v) }")


def test_sizes_are_compared_as_sums_whatever_their_order(rewrite, operators):
    text = graph(f"{SWAP} s = MatMul (q, t) m = Add (s, mask) p = Softmax <axis = -1> (m) {END}")
    text = text.replace("B,2,P,4] k", 'B,2,"P + R",4] k').replace("B,2,P,3] v", 'B,2,"R + P",3] v')
    text = text.replace("S,P] mask", 'S,"R + P"] mask')
    passes = PASSES.replace("fuse", "fold-shapes,fuse", 1)
    assert "Softmax" not in operators(rewrite(text, passes, *cases()))


def test_keys_mixed_in_a_view_keep_their_transpose(rewrite, operators):
    text = swapped_in_a_view("{4, 14, 4}", "{2, 4, 4, 7}")
    case = {"q": normal(2, 4, 5, 4), "k": normal(2, 4, 7, 4), "v": normal(2, 4, 7, 4)}
    assert "Reshape" in operators(rewrite(text, PASSES, case))
