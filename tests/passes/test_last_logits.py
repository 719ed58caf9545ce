from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import moec
from moec.common.errors import InputError
from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report

from .before_after import HEADER, assert_shown, model_of

FACE = "(float[B,L,4] x) => (float[B,L,9] logits) "
NARROW = "(float[B,L,4] x) => (float[B,1,9] logits) "
LAST = "int64[1] last_position = {-1}"


def check(before: str, after: str) -> None:
    """``last-logits`` makes ``after`` of ``before``; the logits are those of the last position, all else as before."""
    passes, model = pipeline.parse("infer-shapes,last-logits"), model_of(before)
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    expected = interpreter.run(model, {"x": x})
    assert pipeline.run(model, passes, verify_each=True)
    assert_shown(model, after)
    actual = interpreter.run(model, {"x": x})
    assert actual["logits"].shape == (2, 1, 9)
    expected["logits"] = expected["logits"][:, -1:]
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-6)


def refused(text: str) -> str:
    """The one remark of a pass that leaves the graph as it is."""
    model, report = model_of(text), Report()
    pipeline.run(model, pipeline.parse("last-logits"), report)
    assert_shown(model, text)
    (remark,) = report.remarks
    return remark.message


def test_it_goes_up_as_far_as_tokens_are_alone():
    """Both branches of a residual, up to where all positions are needed."""
    body = """< float[4] scale, float[4,4] up, float[4,4] down, float[4,9] table, float cap = {2}, int64 axis = {1}%s> {
        rows = CumSum (x, axis) %s normal = RMSNormalization <axis = -1> (%s, scale)
        hidden = moec.Linear <activation = "silu"> (normal, up) product = MatMul (hidden, down)
        sum = Add (%s, product) wide = MatMul (sum, table) small = Div (wide, cap) bent = Tanh (small)
        logits = Mul (bent, cap) }"""
    last = "rows_last = Gather <axis = 1> (rows, last_position)"
    check(FACE + body % ("", "", "rows", "rows"), NARROW + body % (f", {LAST}", last, "rows_last", "rows_last"))


ROUTED = """%s<float[4,3] router, float[3,4,4] up, float[3,4,2] down, float[4,9] table, int64 axis = {1},
    int64[1] one = {1}, %s> { earlier = CumSum (x, axis) %s rows = Reshape (%s)
    scores = MatMul (rows, router) y = moec.MoE <activation = "relu", k = 2> (rows, scores, "", up, down)
    back = Reshape (y, %s) sum = Add (%s, back) logits = MatMul (sum, table) }"""


def test_it_goes_through_mixtures_of_experts():
    sizes = "int64[2] flat = {-1, 4}, int64[3] whole = {0, -1, 4}"
    before = ROUTED % (FACE, sizes, "apart = Unsqueeze (earlier, one)", "apart, flat", "whole", "earlier")
    before = before.replace("whole = {0, -1, 4}", "whole = {-1, 3, 4}").replace("B,L", "B,3")
    after = ROUTED % (
        NARROW,
        f"int64[2] last_shape = {{-1, 4}}, int64[3] last_shape_2 = {{-1, 1, 4}}, {LAST}",
        "earlier_last = Gather <axis = 1> (earlier, last_position)",
        "earlier_last, last_shape",
        "last_shape_2",
        "earlier_last",
    )
    check(before, after.replace("B,L", "B,3"))


def test_what_others_need_stays_whole():
    """Another output of all positions; and rows, of which the last cannot be taken once they are in one list."""
    face = FACE.replace(") =>", ") => (float[B,L,4] turned,").replace("turned, (", "turned, ")
    body = "<float[4,9] table%s> { turned = Sin (x) %s logits = MatMul (%s, table) }"
    narrow = face.replace("L,9", "1,9")
    last = "turned_last = Gather <axis = 1> (turned, last_position)"
    check(face + body % ("", "", "turned"), narrow + body % (f", {LAST}", last, "turned_last"))
    body = """<float[4,9] table, int64[2] flat = {-1, 4}, int64[3] whole = {-1, 3, 4}, int64 axis = {0}%s> {
        rows = Reshape (x, flat) all = CumSum (rows, axis) back = Reshape (all, whole) %s
        logits = MatMul (%s, table) }"""
    last = "back_last = Gather <axis = 1> (back, last_position)"
    after = NARROW + body % (f", {LAST}", last, "back_last")
    check((FACE + body % ("", "", "back")).replace("B,L", "B,3"), after.replace("B,L", "B,3"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            FACE + "<float[9] far> { wide = Concat <axis = 2> (x, x) odd = Sin (x) logits = Expand (far, far) }",
            "no out",
        ),
        ("(float[B,L,4] x) => (float[B,L,4] y) { y = Sin (x) }", "no outputs that could be logits"),
        (
            "(float[B,L,4] x) => (float[B,L,9] y, float[B,L,9] z) <float[4,9] w> { y = MatMul (x, w) z = Sin (y) }",
            "2 outputs that could be logits",
        ),
        (
            "(float[B,L,4] x) => (float[B,L,9] y, float[B,L] z) <float[4,9] w, int64[1] a = {2}> "
            "{ y = MatMul (x, w) z = ReduceSum <keepdims = 0> (y, a) }",
            "the last position cannot be taken before",
        ),
        (
            "(float[M,4] x, bool[M] kept) => (float[1,L,9] y) <float[4,9] w, float[1,L,4] u, int64[1] a = {0}> "
            "{ c = Compress <axis = 0> (x, kept) u = Unsqueeze (c, a) y = MatMul (u, w) }",
            "nothing tells that the length",
        ),
    ],
)
def test_what_stays_as_it_is(text, reason):
    assert reason in refused(text)


def test_it_is_done_once():
    model = model_of(FACE + "<float[4,9] table> { logits = MatMul (x, table) }")
    passes = pipeline.parse("infer-shapes,last-logits")
    assert pipeline.run(model, passes) and not pipeline.run(model, passes[1:])


def test_no_tokens_have_no_last_position():
    text = "(float[B,L,4] x) => (float[B,L,9] logits) <float[4,9] table> { logits = MatMul (x, table) }"
    text = text.replace("float[4,9] table", f"float[4,9] table = {{{','.join('1' * 36)}}}")
    model = moec.compile(onnx.parser.parse_model(HEADER + text), passes="O2,last-logits", verify_each=True)
    assert model.guards == ["1 <= L"]
    assert model.run({"x": np.ones((2, 5, 4), np.float32)})["logits"].shape == (2, 1, 9)
    with pytest.raises(InputError, match="1 <= L"):
        model.run({"x": np.ones((2, 0, 4), np.float32)})
