"""Bytes of tensors whose sizes multiply beyond 64 bits."""

from __future__ import annotations

import pytest
from tvm import tirx

from moec.targets.tvm.phases.bound_storage import as_float

LARGE = 1 << 40


@pytest.mark.parametrize(
    ("operator", "right", "expected"),
    [(tirx.Mul, LARGE, LARGE**3), (tirx.Add, LARGE, 2 * LARGE**2), (tirx.Sub, 1, (LARGE - 1) * LARGE)],
)
def test_products_of_sums_are_computed_where_they_do_not_overflow(operator, right, expected):
    large, right = tirx.IntImm("int64", LARGE), tirx.IntImm("int64", right)
    assert as_float(tirx.Mul(operator(large, right), large)).value == pytest.approx(expected)
