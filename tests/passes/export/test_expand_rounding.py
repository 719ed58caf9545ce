"""The pass that spells the rounding of rows, which onnxruntime runs."""

from __future__ import annotations

import numpy as np
import pytest

from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import model_of

TEXT = """(float[B,T,7] x) => (float[B,T,4] y, float[B,T,7] z) <float[4,7] w> {
   y = moec.Linear <arithmetic = "int8", activation_group = 3> (x, w)
   z = moec.RoundRows (x)
}"""
BY = "expand-rounding,expand-linear"


@pytest.mark.parametrize("arithmetic", ['"int8"', '"int8", activation_group = 3', '"fp8"', '"bfloat16"'])
@pytest.mark.parametrize("dtype", ["float", "double"])
def test_rows_of_any_rank(exported, normal, arithmetic, dtype):
    """Also rows of zeros, and no rows."""
    text = TEXT.replace('"int8", activation_group = 3', arithmetic).replace("float[", f"{dtype}[")
    feeds = [normal(2, 5, 7).astype(dtype.replace("float", "float32")) for _ in range(2)]
    feeds[1][1, 2] = 0
    model, report = exported(text, *({"x": x} for x in (*feeds, feeds[0][:, :0])), by=BY)
    assert not report.remarks and not [node for node in model.graph if node.domain]


def test_rows_that_are_not_finite(exported, normal):
    x = normal(1, 1, 7)
    x[0, 0, 3] = np.inf
    exported(TEXT, {"x": x}, by=BY)


def test_an_arithmetic_that_onnx_cannot_spell_stays():
    text = TEXT.replace('"int8", activation_group = 3', '"tf32"')
    model, report = model_of(text), Report()
    pipeline.run(model, pipeline.parse("infer-shapes,expand-rounding"), report)
    assert [node.op_type for node in model.graph if node.domain] == ["Linear"]
    assert [remark.message for remark in report.remarks] == ["stays as it is: ONNX does not round to tf32"]
