"""The pass that keeps rows as they are before products."""

from __future__ import annotations

from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import assert_shown, check, model_of

GRAPH = """(float[T,8] x) => (float[T,2] y) <float[4,8] w, float[2,4] v> {
   r = moec.RoundRows (x)
   h = moec.Linear <arithmetic = "bfloat16"> (r, w)
   y = moec.Linear (h, v)
}"""


def test_rounding_is_removed_and_reported():
    model, report = model_of(GRAPH), Report()
    assert pipeline.run(model, pipeline.parse("keep-rows"), report)
    kept = GRAPH.replace("r = moec.RoundRows (x)", "").replace("(r,", "(x,").replace('<arithmetic = "bfloat16">', "")
    assert_shown(model, kept)
    assert [remark.message for remark in report.remarks] == [
        "its rows are not rounded to bfloat16, but kept in float32"
    ]


def test_other_products_stay():
    assert check("keep-rows", "(float[T,8] x) => (float[T,4] y) <float[4,8] w> { y = moec.Linear (x, w) }") == []
