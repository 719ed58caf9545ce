"""What a block computes of sizes alone is looked at for more sizes than trials have."""

from __future__ import annotations

import numpy as np
import pytest

from moec.ir import dialect
from moec.passes.framework.base import Report
from moec.passes.raise_moe import RaiseMoE
from moec.passes.raising import trials

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


CANCELLED = """xs = Shape (x)
    n = Gather (xs, scalar_zero)
    amount = Cast <to = 1> (n)
    more = Mul (o, amount)
    scaled = Div (more, amount)
    weighted = Mul (scaled,"""


def test_sizes_that_were_assumed_are_told(build, texts, normal) -> None:
    weights = {"up": normal(4, 10, 6), "down": normal(4, 6, 5)}
    for text, begins in (
        (CANCELLED, ["assumed: Cast node 'amount', made of sizes, goes on as before beyond T = "]),
        (RESULT, []),
    ):
        model, report = build(texts["batched"].replace(RESULT, text), **weights, **CONSTANTS), Report()
        assert RaiseMoE().apply(model, report) and len(report.remarks) == len(begins)
        assert all(remark.message.startswith(one) for remark, one in zip(report.remarks, begins, strict=True))


def test_layouts_that_are_too_large_to_be_tried_are_told(build, texts, normal, monkeypatch) -> None:
    weights = {"up": normal(4, 6, 5), "down": normal(4, 5, 6)}
    flat = "x = Reshape (pictures, rows)\n" + texts["dense"].replace("y = Einsum", "y2 = Einsum")
    text = flat.replace("(x, ", "(flat, ").replace("x = Reshape (pictures", "flat = Reshape (x")
    text += "\n xs = Shape (x)\n y = Reshape (y2, xs)"
    for share, told in ((0, ["A = 3, B = 4", "A = 4, B = 3"]), (trials.LAYOUT_SHARE, [])):
        monkeypatch.setattr(trials, "LAYOUT_SHARE", share)
        model, report = build(text, "A,B,6", **weights), Report()
        assert RaiseMoE().apply(model, report)
        assert [remark.message.partition(" agree")[0] for remark in report.remarks] == [
            f"assumed: sizes {one}" for one in told
        ]
