"""Bytes of rows and results are those that programs exchange, in the descriptions of blocks with ranks and without."""

from __future__ import annotations

import numpy as np
import pytest

import moec
from moec.common.dtypes import DTYPES
from moec.ir.blocks import moe_blocks
from moec.passes import pipeline
from moec.passes.framework.base import Report
from moec.runtime.ranks import OneRank
from tests.passes.before_after import model_of
from tests.passes.test_place_experts import routed_experts

WEIGHTED = """(%s[T,4] x, %s[T,2] w, int32[T,2] e) => (%s[T,4] y) <%s[3,4,5] up, %s[3,5,4] down> {
    y = moec.Experts <gate_layout = "none", up_transposed = 1, down_transposed = 1, weight_on_input = %d>
        (x, w, e, up, down)
}"""
COMPUTED = """(bfloat16[T,4] x, bfloat16[T,2] w, int32[T,2] e, bfloat16[3,5] b) => (bfloat16[T,4] y)
    <bfloat16[3,4,5] up, bfloat16[3,5,4] down> {
    y = moec.Experts <gate_layout = "none", up_transposed = 1, down_transposed = 1> (x, w, e, up, down, , b)
}"""
"""Experts with a bias that is computed, so that ranks round their results."""
UNKNOWN = COMPUTED.replace("T,2] e", "T,K] e")


class NotingRank(OneRank):
    """One rank that notes the bytes of a row with all that travels with it, and of a result."""

    def send(self, layer: int, rows: np.ndarray, experts: np.ndarray, weights: np.ndarray | None) -> None:
        self.out = sum(part.shape[1] * part.itemsize for part in (rows, experts, weights) if part is not None)
        super().send(layer, rows, experts, weights)

    def give_back(self, layer: int, results: np.ndarray) -> np.ndarray:
        self.back = results.shape[1] * results.itemsize
        return super().give_back(layer, results)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WEIGHTED % (*["float"] * 5, 1), {"out": 4 * 4 + 2 * (4 + 4), "back": 4 * 4}),
        (WEIGHTED % (*["float"] * 5, 0), {"out": 4 * 4 + 2 * 4, "back": 4 * 4}),
        (WEIGHTED % (*["bfloat16"] * 5, 1), {"out": 4 * 2 + 2 * (4 + 2), "back": 4 * 4}),
        (COMPUTED, {"out": 4 * 2 + 2 * 4, "back": 4 * 2}),
        (UNKNOWN, None),
    ],
    ids=["weighted", "plain", "narrow", "computed", "unknown"],
)
def test_weights_that_travel_and_results_of_computed_biases_count(text, expected):
    model = model_of(text)
    for passes in ("infer-shapes", "place-experts"):
        pipeline.run(model, pipeline.parse(passes), Report())
        assert [block["row_bytes"] for block in moe_blocks(model)] == [expected]


@pytest.mark.parametrize(
    ("dtype", "out", "back"), [("float", 4 * 4 + 2 * 4, 4 * 4), ("bfloat16", 4 * 2 + 2 * 4, 4 * 4)]
)
def test_bytes_are_those_that_a_program_exchanges(dtype, out, back):
    noting = NotingRank()
    for passes in ("infer-shapes", "infer-shapes,place-experts"):
        compiled = moec.compile(routed_experts(dtype), passes=passes)
        (block,) = compiled.artifact.manifest.moe_blocks
        assert block["row_bytes"] == {"out": out, "back": back}, passes
    compiled._executor.exchange_rows(noting)
    compiled.run({"x": np.ones((3, 4), DTYPES[compiled.inputs[0].dtype])})
    assert (noting.out, noting.back) == (out, back)
