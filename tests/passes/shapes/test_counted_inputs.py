"""Inputs whose numbers are the lengths of sequences are recognised."""

from __future__ import annotations

import pytest

from moec.passes.shapes.counted_inputs import counted_inputs

from ..before_after import model_of

MASKED = "(float[B,S,16] q, float[B,1,P,4] k, float[B,1,P,4] v, int64[B,T] mask, bool late) => (float[B,S,8] y) "
CONSTANTS = "<int64[1] axis = {1}, int64 one = {1}> "
SIZE = "shape = Shape (mask) size = Gather (shape, one) total = Cast <to = 6> (size) "
ONES = "ones = ReduceSum <keepdims = 0> (mask, axis) "
GROUPED = "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (q, '', '', k, v, last, total) }"
GROUPED = GROUPED.replace("'", '"')


def test_a_mask_whose_ones_are_counted():
    text = f"{MASKED}{CONSTANTS}{{ {ONES}{SIZE}before = Sub (ones, one) last = Cast <to = 6> (before) {GROUPED}"
    assert counted_inputs(model_of(text)) == ["mask"]


def test_a_mask_of_which_the_size_alone_counts():
    text = f"{MASKED}{CONSTANTS}{{ {SIZE}before = Sub (size, one) last = Cast <to = 6> (before) {GROUPED}"
    assert counted_inputs(model_of(text)) == []


def test_a_mask_that_is_counted_for_something_else():
    text = f"{MASKED}{CONSTANTS}{{ {ONES}share = Cast <to = 1> (ones) y = Mul (q, share) }}"
    assert counted_inputs(model_of(text)) == []


def test_a_mask_that_is_counted_inside_a_branch():
    branches = (
        f"then_branch = g () => (int64[B] a) {{ a{ONES[4:]}}}, else_branch = h () => (int64[B] b) {{ b{ONES[4:]}}}"
    )
    chosen = f"counted = If <{branches}> (late) last = Cast <to = 6> (counted) "
    assert counted_inputs(model_of(f"{MASKED}{CONSTANTS}{{ {SIZE}{chosen}{GROUPED}")) == ["mask", "late"]


@pytest.mark.parametrize(
    "computed",
    [
        'y = Attention (q, k, v, "", "", "", ones)',
        "y = TensorScatter <axis = 2> (k, v, ones)",
    ],
)
def test_lengths_of_operators_of_onnx(computed):
    assert counted_inputs(model_of(f"{MASKED}{CONSTANTS}{{ {ONES}{computed} }}")) == ["mask"]
