"""What a block computes of sizes alone is looked at for more sizes than trials have."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import dialect
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE

CONSTANTS = {
    "slope": np.float32(0.05),
    "less": np.float32(0.0486),
    "middle": np.float32(50),
    "far": np.float32(4000),
    "unit": np.float32(1),
}
RESULT = "weighted = Mul (o,"
AMOUNT = """xs = Shape (x)
    n = Gather (xs, scalar_zero)
    amount = Cast <to = 1> (n)
    q = Mul (amount, slope)
    q1 = Sub (q, {middle})
    switch = Sigmoid (q1)
    f = Sub (unit, switch)
    scaled = Mul (o, f)
    weighted = Mul (scaled,"""
SLOW = AMOUNT.replace("slope)", "less)")
"""A switch that moves the result by less than the tolerance at the first larger size, and wholly beyond."""
NOTHING = AMOUNT.replace("switch = Sigmoid (q1)", "switch = Sub (q1, q1)")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (AMOUNT.format(middle="middle"), "differs by"),
        (SLOW.format(middle="middle"), "differs by"),
        (AMOUNT.format(middle="far"), "it is another number than in all trials where T = "),
        (NOTHING.format(middle="middle"), None),
    ],
)
def test_a_smooth_switch_on_the_number_of_tokens_is_never_raised(build, texts, normal, text, told) -> None:
    assert RESULT in texts["batched"]
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    model, report = build(texts["batched"].replace(RESULT, text), **weights, **CONSTANTS), Report()
    RaiseMoE().apply(model, report)
    assert any(dialect.is_moec(node) for node in model.graph) == (told is None)
    assert told is None or any(told in remark.message for remark in report.remarks)
