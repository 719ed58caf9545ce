"""The table of movements against the operators' effects on distinct numbers."""

from __future__ import annotations

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from moec.ir import interpreter
from moec.ir.movement import MOVEMENTS, Movement, moving

CONSTANTS = """<bool[6] some = {0, 1, 1, 0, 1, 0}, int64[3] wide = {2, 2, 3}, int64 axis = {1}, int64[1] first = {0},
    int64[1] last = {-1}, int64[2] places = {1, 1}, int64[2,1] corners = {1, 0}, int64[1,3] rows = {1, 0, 1},
    int64[2] twice = {2, 1}, int64[2] turned = {3, 2}, int64[1] low = {-9}>"""
CASES = {
    "Cast": "Cast <to = 11> (x)",
    "Compress": "Compress (x, some)",
    "Expand": "Expand (x, wide)",
    "Flatten": "Flatten (x)",
    "Gather": "Gather <axis = 1> (x, places)",
    "GatherElements": "GatherElements (x, rows)",
    "GatherND": "GatherND (x, corners)",
    "Identity": "Identity (x)",
    "Reshape": "Reshape (x, turned)",
    "Slice": "Slice (x, last, low, first, last)",
    "Split": "Split <axis = 0, num_outputs = 2> (x)",
    "Squeeze": "Squeeze (x)",
    "Tile": "Tile (x, twice)",
    "Transpose": "Transpose (x)",
    "Unsqueeze": "Unsqueeze (x, first)",
}
SEEN = {
    "GatherND": Movement(reorders=True),
    "Gather": Movement(drops=True, repeats=True),
    "GatherElements": Movement(drops=True, reorders=True),
    "Slice": Movement(reorders=True),
}
"""Side effects of an operator that its example does not show."""


@pytest.mark.parametrize("operator", MOVEMENTS)
def test_the_table_says_what_happens_to_elements(operator):
    text = f'<ir_version: 10, opset_import: ["" : 24]> g (float[2,3] x) => (y) {CONSTANTS} {{ y = {CASES[operator]} }}'
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    result = interpreter.run(ir.from_proto(onnx.parser.parse_model(text)), {"x": x})["y"]
    elements = result.ravel().tolist()
    assert set(elements) <= set(range(6))
    shown = Movement(
        drops=len(set(elements)) < 6,
        repeats=len(set(elements)) < len(elements),
        reorders=list(dict.fromkeys(elements)) != sorted(set(elements)),
        casts=result.dtype != x.dtype,
    )
    assert shown == SEEN.get(operator, MOVEMENTS[operator])


def test_what_is_not_allowed_is_left_out():
    assert moving() == MOVEMENTS.keys()
    assert moving(casts=False) == MOVEMENTS.keys() - {"Cast"}
    assert moving(drops=False, repeats=False, reorders=False, casts=False) == {
        *("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
    }
