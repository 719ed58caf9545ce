"""Sums of results that data weighs are reported, whatever computes the weights; sums of other kinds are not."""

from __future__ import annotations

import pytest

from moec.ir.shapes import infer
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.weighted_sums import weighted_sums

from ..before_after import model_of

EXPERTS = "float[6,5] up0, float[6,5] up1, float[5,1] down0, float[5,1] down1, float[6,2] gate"
COMPUTED = """
    h0 = MatMul (x, up0)
    a0 = Relu (h0)
    r0 = MatMul (a0, down0)
    h1 = MatMul (x, up1)
    a1 = Relu (h1)
    r1 = MatMul (a1, down1)
    g = MatMul (x, gate)
"""
WEIGHED = """
    w0, w1 = Split <axis = 1, num_outputs = 2> (w)
    t0 = Mul (w0, r0)
    t1 = Mul (r1, w1)
    y = Add (t0, t1) }"""
STACKS = "float[6,4] gate, float[4,6,5] up, float[4,5,6] down"
NUMBERS = "gate, int64[1] one = {1}, int64[1] two = {2}"
REDUCED = "c = Unsqueeze (w, last)\n m = Mul (c, o)\n y = ReduceSum <keepdims = 0> (m, axis)"
STACKED = """
    h = Einsum <equation = "td,edf->tef"> (x, up)
    a = Tanh (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
    g = MatMul (x, gate)
"""


def terms(weights: str) -> str:
    return f"(float[T,6] x) => (float[T,1] y) <{EXPERTS}> {{ {COMPUTED} {weights} {WEIGHED}"


def stacked(end: str) -> str:
    constants = f"{STACKS}, int64[1] axis = {{1}}, int64[1] last = {{2}}"
    return f"(float[T,6] x) => (float[T,6] y) <{constants}> {{ {STACKED} {end} }}"


def found(text: str) -> list[tuple[str | None, int]]:
    model = model_of(text)
    infer(model)
    return [(value.name, count) for value, count in weighted_sums(DataFlow(model.graph), list(model.graph))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (terms("w = Tanh (g)"), [("w", 2)]),
        (terms("w = Mul (g, g)"), [("w", 2)]),
        (stacked(f"w = Mul (g, g)\n {REDUCED}"), [("w", 4)]),
        (stacked("w = Tanh (g)\n r = Unsqueeze (w, axis)\n m = MatMul (r, o)\n y = Squeeze (m, axis)"), [("w", 4)]),
        (stacked('w = Tanh (g)\n y = Einsum <equation = "te,ted->td"> (w, o)'), [("w", 4)]),
    ],
)
def test_mixtures(text: str, expected: list[tuple[str, int]]):
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        # constants weigh
        terms("w = Tanh (g)").replace("Mul (w0, r0)", "Identity (r0)").replace("Mul (r1, w1)", "Identity (r1)"),
        # one number weighs all
        terms("w = Tanh (g)").replace("(r1, w1)", "(r1, w0)"),
        # results of one product
        terms("w = Tanh (g)").replace("r1 = MatMul (a1, down1)", "r1 = Neg (r0)"),
        # each result is divided by what it is made of alone
        terms("w0 = Neg (r0)\n w1 = Neg (r1)").replace("w0, w1 = Split <axis = 1, num_outputs = 2> (w)", ""),
        # results of other kinds: a skip connection
        terms("w = Tanh (g)")
        .replace("r1 = MatMul (a1, down1)", "r1 = Slice (x, one, two, one)")
        .replace("gate", NUMBERS, 1),
        # the sum is along the hidden units, not along experts
        stacked("w = Mul (o, o)\n m = Mul (w, o)\n y = ReduceSum <keepdims = 0> (m, last)").replace(
            "[T,6] y", "[T,4] y"
        ),
        # heads of attention: keys and values by stacks of matrices, a sum along tokens
        """(float[T,6] x) => (float[4,T,5] y) <float[4,6,5] q, float[4,6,5] k, float[4,6,5] v> {
            a = Einsum <equation = "td,hdk->htk"> (x, q)
            b = Einsum <equation = "td,hdk->htk"> (x, k)
            c = Einsum <equation = "td,hdk->htk"> (x, v)
            s = Einsum <equation = "htk,hsk->hts"> (a, b)
            w = Softmax <axis = -1> (s)
            y = MatMul (w, c) }""",
    ],
)
def test_other_sums(text: str):
    assert found(text) == []


def unraised(text: str) -> list[str]:
    report = Report()
    pipeline.run(model_of(text), pipeline.parse("infer-shapes,raise-moe"), report)
    return [one.reason for one in report.unraised]


def test_experts_that_make_one_number_are_told_of_once():
    softmax = "w = Softmax <axis = -1> (g)"
    (reason,) = unraised(terms(softmax))
    assert reason.startswith("it weighs all of its experts for every token")
    columns = "r = Concat <axis = 1> (r0, r1)\n m = Mul (r, w)\n y = ReduceSum (m, one) }"
    (reason,) = unraised(terms(softmax).replace(WEIGHED, columns).replace("gate", NUMBERS, 1))
    assert reason.startswith("it weighs all of its experts for every token")
    (reason,) = unraised(terms("w = Mul (g, g)"))
    assert reason.startswith("it adds up 2 results that values of each token weigh")


def test_mixed_matrices_are_told_of():
    text = """(float[T,6] x) => (float[T,1,5] y) <float[6,4] gate, float[4,6,5] up, int64[1] one = {1}> {
        g = MatMul (x, gate)
        w = Softmax <axis = -1> (g)
        mixed = Einsum <equation = "te,edf->tdf"> (w, up)
        row = Unsqueeze (x, one)
        y = MatMul (row, mixed) }"""
    (reason,) = unraised(text)
    assert reason.startswith("it mixes the matrices of its experts")
    assert not unraised(
        text.replace("(row, mixed)", "(row, plain)").replace("(w, up)", "(w, up)\n plain = Neg (mixed)")
    )


QUANTISED = """(float[T,6] x) => (float[T,6] y) <uint8[6,4] gate, float scale, uint8 zero, int64[1] k = {1},
    uint8[6,6] up0, uint8[6,6] up1, uint8[6,6] up2, uint8[6,6] up3, int64 n0 = {0}, int64 n1 = {1}, int64 n2 = {2},
    int64 n3 = {3}> {
    q, s, z = DynamicQuantizeLinear (x)
    step = Mul (s, scale)
    gi = MatMulInteger (q, gate, z, zero)
    gf = Cast <to = 1> (gi)
    logits = Mul (gf, step)
    top, chosen = TopK <axis = -1> (logits, k)
    %s
    a = Add (t0, t1)
    b = Add (t2, t3)
    y = Add (a, b) }"""
EXPERT = """
    i%d = MatMulInteger (q, up%d, z, zero)
    f%d = Cast <to = 1> (i%d)
    r%d = Mul (f%d, step)
    e%d = Equal (chosen, n%d)
    m%d = Cast <to = 1> (e%d)
    t%d = Mul (r%d, m%d)"""


def test_experts_of_integer_products_are_told_of():
    """As onnxruntime's dynamic quantisation writes them."""
    report = Report()
    model = model_of(QUANTISED % "".join(EXPERT % ((number,) * 13) for number in range(4)))
    pipeline.run(model, pipeline.parse("infer-shapes,expand-functions,raise-moe"), report)
    (actual,) = report.unraised
    assert (actual.experts, actual.top_k) == (4, 1)
    assert actual.reason.startswith("its router chooses 1 experts by identity, but its experts have 1 projections")
