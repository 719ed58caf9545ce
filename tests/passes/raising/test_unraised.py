"""Likely mixtures of experts without a block are reported, and other networks are not."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.passes.raising.dataflow import DataFlow
from moec.passes.raising.unraised import resemblances

from ..before_after import model_of

STACKS = "float[6,4] gate, float[4,6,5] up, float[4,5,6] down"
EXPERTS = """
    h = Einsum <equation = "td,edf->tef"> (x, up)
    a = Relu (h)
    o = Einsum <equation = "tef,efd->ted"> (a, down)
"""
SOFT = f"""(float[T,6] x) => (float[T,6] y) <{STACKS}> {{
    logits = MatMul (x, gate)
    scores = Softmax <axis = -1> (logits)
    {EXPERTS}
    y = Einsum <equation = "ted,te->td"> (o, scores) }}"""
UNROLLED = """(float[T,6] x) => (float[T,6] y, float[T,6] o1)
    <float[6,2] gate, float[6,6] first, float[6,6] second, int64[1] zero = {0}, int64[1] one = {1}> {
    logits = MatMul (x, gate)
    scores = Softmax <axis = -1> (logits)
    w0 = Gather <axis = 1> (scores, zero)
    w1 = Gather <axis = 1> (scores, one)
    o0 = MatMul (x, first)
    o1 = MatMul (x, second)
    y0 = Mul (o0, w0)
    y1 = Mul (o1, w1)
    y = Add (y0, y1) }"""
TABLE = f"""(float[T,6] x, int64[T] tokens) => (float[T,6] y)
    <{STACKS}, int64[3] table = {{0, 2, 3}}, int64 depth = {{4}}, float[2] values> {{
    chosen = Gather <axis = 0> (table, tokens)
    scores = OneHot <axis = -1> (chosen, depth, values)
    {EXPERTS}
    y = Einsum <equation = "ted,te->td"> (o, scores) }}"""
COLUMNS = f"""(float[T,6] x) => (float[T,6] y)
    <float[4,6] gate, float[4,6,5] up, float[4,5,6] down, int64[1] k = {{2}}, float zero> {{
    turned = Transpose <perm = [1, 0]> (x)
    logits = MatMul (gate, turned)
    top, chosen = TopK <axis = 0> (logits, k)
    w = Softmax <axis = 0> (top)
    shape = Shape (logits)
    zeros = Expand (zero, shape)
    columns = ScatterElements <axis = 0> (zeros, chosen, w)
    scores = Transpose <perm = [1, 0]> (columns)
    {EXPERTS}
    y = Einsum <equation = "ted,te->td"> (o, scores) }}"""
BEHIND = """(float[T,6] x) => (float[T,6] y)
    <float[6,4] gate, float[4,6,6] first, float[4,6,6] second, int64[1] k = {1}, int64[1] axis = {1}> {
    gated = MatMul (x, gate)
    turned = Transpose <perm = [1, 0]> (gated)
    back = Transpose <perm = [1, 0]> (turned)
    logits = Mul (back, back)
    top, chosen = TopK <axis = -1> (logits, k)
    flat = Squeeze (chosen, axis)
    one = Gather <axis = 0> (first, flat)
    two = Gather <axis = 0> (second, flat)
    column = Unsqueeze (x, axis)
    h = MatMul (column, one)
    a = Sin (h)
    o = MatMul (a, two)
    y = Squeeze (o, axis) }"""


CHOSEN_TOKENS = f"""(float[T,6] x) => (float[T,6] y) <{STACKS},
    int64[1] k = {{2}}, int64[1] last = {{-1}}, int64[2] rows = {{-1, 6}}, int64[2] column = {{-1, 1}}, float zero> {{
    logits = MatMul (x, gate)
    scores = Softmax <axis = -1> (logits)
    turned = Transpose <perm = [1, 0]> (scores)
    w, tokens = TopK <axis = -1> (turned, k)
    taken = Gather <axis = 0> (x, tokens)
    h = MatMul (taken, up)
    a = Relu (h)
    o = MatMul (a, down)
    w_column = Unsqueeze (w, last)
    weighted = Mul (o, w_column)
    results = Reshape (weighted, rows)
    places = Reshape (tokens, column)
    shape = Shape (x)
    zeros = Expand (zero, shape)
    y = ScatterND <reduction = "add"> (zeros, places, results) }}"""
PRODUCT_KEYS = """(float[T,6] x) => (float[T,6] y) <float[6,4] one, float[6,4] other, float[16,6] up, float[16,6] down,
    int64[1] k = {2}, int64[1] first = {1}, int64[1] second = {2}, int64[2] pairs = {-1, 4}, int64 four = {4}> {
    logits = MatMul (x, one)
    others = MatMul (x, other)
    v, i = TopK <axis = -1> (logits, k)
    u, j = TopK <axis = -1> (others, k)
    v3 = Unsqueeze (v, second)
    u3 = Unsqueeze (u, first)
    sums = Add (v3, u3)
    scores = Reshape (sums, pairs)
    i3 = Unsqueeze (i, second)
    j3 = Unsqueeze (j, first)
    tens = Mul (i3, four)
    numbers = Add (tens, j3)
    all = Reshape (numbers, pairs)
    best, chosen = TopK <axis = -1> (scores, k)
    ids = GatherElements <axis = 1> (all, chosen)
    ups = Gather <axis = 0> (up, ids)
    x_column = Unsqueeze (x, second)
    h3 = MatMul (ups, x_column)
    h = Squeeze (h3, second)
    a = Relu (h)
    w = Softmax <axis = -1> (best)
    weighted = Mul (a, w)
    downs = Gather <axis = 0> (down, ids)
    y = Einsum <equation = "tk,tkd->td"> (weighted, downs) }"""


def returning_results(text: str) -> str:
    """The graph with every expert's result for every token as a further output."""
    return text.replace("=> (float[T,6] y)", "=> (float[T,6] y, float[T,4,6] o)")


def unraised(text: str) -> Report:
    report = Report()
    pipeline.run(model_of(text), pipeline.parse("infer-shapes,raise-moe"), report)
    return report


@pytest.mark.parametrize(
    ("text", "experts", "reason"),
    [
        (returning_results(SOFT), 4, "it weighs all of its experts for every token"),
        (UNROLLED, 2, "it weighs all of its experts for every token"),
        (returning_results(SOFT.replace("Softmax <axis = -1>", "Relu")), 4, "it weighs all of its experts"),
        (returning_results(TABLE), None, "a table gives the experts of a token"),
    ],
)
def test_it_is_told_and_stays(text, experts, reason):
    report = unraised(text)
    (actual,), (remark,) = report.unraised, report.remarks
    assert actual.experts == experts
    assert actual.reason.startswith(reason)
    assert (remark.subject, remark.severity) == (actual.node, "note")
    assert remark.message == f"left as ordinary operators: {actual.reason}"


def test_logits_of_experts_by_tokens_are_tried():
    (actual,) = unraised(returning_results(COLUMNS)).unraised
    assert (actual.experts, actual.top_k) == (4, 2)
    assert actual.reason.startswith("what it computes is not recognised")


def test_a_selection_that_no_block_is_found_around_is_told():
    (actual,) = unraised(BEHIND).unraised
    assert (actual.experts, actual.top_k) == (4, 1)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CHOSEN_TOKENS, "it chooses tokens for experts, not experts for tokens"),
        (PRODUCT_KEYS, "experts are chosen by a further selection among what it chose (TopK node best)"),
        (returning_results(SOFT), "its experts' results are used by more than y"),
    ],
)
def test_the_cause_is_told_not_the_nearest_miss(text, reason):
    assert reason in unraised(text).unraised[0].reason


@pytest.mark.parametrize(
    "text",
    [
        # a gated MLP: as many scores as hidden units
        """(float[T,6] x) => (float[T,6] y) <float[6,4] gate, float[6,4] up, float[4,6] down> {
            g = MatMul (x, gate)
            s = Sigmoid (g)
            u = MatMul (x, up)
            a = Mul (s, u)
            y = MatMul (a, down) }""",
        # attention: scores of two computed values
        """(float[6,6] x) => (float[6,6] y) <float[6,6] q, float[6,6] k, float[6,6] v> {
            queries = MatMul (x, q)
            keys = MatMul (x, k)
            values = MatMul (x, v)
            turned = Transpose <perm = [1, 0]> (keys)
            logits = MatMul (queries, turned)
            scores = Softmax <axis = -1> (logits)
            y = MatMul (scores, values) }""",
        # a classifier, and sampling from it
        """(float[T,6] x) => (float[T,1] y, int64[T,1] chosen) <float[6,6] w, float[6,4] v, int64[1] k = {1}> {
            h = MatMul (x, w)
            a = Relu (h)
            logits = MatMul (a, v)
            scores = Softmax <axis = -1> (logits)
            y, chosen = TopK <axis = -1> (scores, k) }""",
        # a gate of two halves of a cell
        """(float[T,6] x) => (float[T,6] y) <float[6,12] gate, float[6,6] w, float[6,6] v> {
            g = MatMul (x, gate)
            s = Sigmoid (g)
            r, z = Split <axis = 1, num_outputs = 2> (s)
            a = MatMul (x, w)
            b = MatMul (x, v)
            c = Mul (r, a)
            d = Mul (z, b)
            y = Add (c, d) }""",
    ],
)
def test_other_networks_are_not_taken_for_mixtures(text):
    report = unraised(text)
    assert not report.unraised
    assert not report.remarks


def test_a_raised_block_is_not_told_of_twice():
    text = SOFT.replace("Softmax <axis = -1> (logits)", "Softmax <axis = -1> (kept)").replace(
        "logits = MatMul (x, gate)",
        """logits = MatMul (x, gate)
        top, chosen = TopK <axis = -1> (logits, k)
        shape = Shape (logits)
        lowest = Expand (low, shape)
        kept = ScatterElements <axis = -1> (lowest, chosen, top)""",
    )
    text = text.replace(STACKS, f"{STACKS}, int64[1] k = {{2}}, float low = {{-inf}}")
    report = Report()
    model = model_of(text)
    pipeline.run(model, pipeline.parse("infer-shapes,raise-moe,remove-dead-nodes"), report)
    assert [node.op_type for node in model.graph if node.domain == "moec"] == ["Route", "Experts"]
    assert not report.unraised


def test_routers_of_gates_that_weigh_no_matrices_are_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes far back, and every SiLU has a gate."""
    asked: list[ir.Value] = []
    monkeypatch.setattr("moec.passes.raising.unraised.router_of", lambda _dataflow, scores: asked.append(scores))
    model = model_of("""(float[T,8] x) => (float[T,8] y) {
        s = Sigmoid (x)
        t = Mul (x, s)
        g = Sigmoid (t)
        y = Mul (t, g) }""")
    pipeline.run(model, pipeline.parse("infer-shapes"))
    graph = model.graph
    assert list(resemblances(DataFlow(graph), list(graph), [])) == []
    assert len(asked) == 2
