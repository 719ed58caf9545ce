"""Selections around which no block is looked for."""

from __future__ import annotations

import pytest

from moec.passes.graph.edits import is_op
from moec.passes.raising.candidates import selects_for_experts
from moec.passes.raising.dataflow import DataFlow

from ..before_after import model_of

LAYER = """(float[T,2] x, float[T,3] logits) => (float[T,2] y)
    <float[3,4,2] up, float[3,2,4] down, int64[1] k = {{2}}> {{
    top, chosen = TopK <axis = -1> (logits, k)
    scores = Softmax <axis = -1> (top)
    {experts}
}}"""
IDS = """
    ids = Cast <to = 6> (chosen)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (x, scores, ids, up, down)
"""
ROWS_AND_WEIGHTS = """
    rows = Add (x, scores)
    w, e = moec.Route <k = 2> (logits)
    y = moec.Experts <activation = "relu", gate_layout = "none"> (rows, scores, e, up, down)
"""


@pytest.mark.parametrize(("experts", "expected"), [(IDS, True), (ROWS_AND_WEIGHTS, False)], ids=["ids", "rows"])
def test_the_ids_of_known_experts_need_no_block(experts, expected):
    graph = model_of(LAYER.format(experts=experts)).graph
    anchor = next(node for node in graph if is_op(node, "TopK"))
    assert selects_for_experts(DataFlow(graph), anchor) is expected
