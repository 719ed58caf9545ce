"""The pass that stores weights in elements that other programs read."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import interpreter
from moec.passes import pipeline
from moec.passes.framework.base import Report

from ..before_after import model_of

TEXT = """(float[T,32] x, float[T,2] w, int32[T,2] e) => (float[T,5] y, float[T,32] z)
   <float[5,32] w1, float[3,4,32] up, float[3,32,4] down> {
   y = moec.Linear (x, w1)
   z = moec.Experts <gate_layout = "none"> (x, w, e, up, down)
}"""


STORED = {"int2": "INT4", "int3": "INT4", "int6": "INT8", "iq4": "INT8", "int8": "INT8", "int4": "INT4"}


@pytest.mark.parametrize("name", STORED)
def test_numbers_stay_bit_for_bit(normal, name):
    model, report = model_of(TEXT), Report()
    form = f"format={name},group=32"
    pipeline.run(model, pipeline.parse(f"infer-shapes,quantize-experts{{{form}}},quantize-linears{{{form}}}"))
    feeds = {"x": normal(6, 32), "w": normal(6, 2), "e": np.arange(12, dtype=np.int32).reshape(6, 2) % 3}
    expected = interpreter.run(model, feeds)
    changed = pipeline.run(model, pipeline.parse("widen-elements,infer-shapes"), report, verify_each=True)
    actual = interpreter.run(model, feeds)
    assert all(np.array_equal(actual[name], expected[name]) for name in expected)
    decoding = [node for node in model.graph if node.op_type == "DequantizeLinear"]
    assert {node.inputs[0].dtype.name for node in decoding} == {STORED[name]}
    assert not any("width" in node.attributes for node in decoding)
    assert changed == bool(report.remarks) == (name not in ("int4", "int8"))
    assert len(report.remarks) in (0, len(decoding))
