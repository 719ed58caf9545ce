"""Expressions of sizes in C."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.tvm.sizes.c_expressions import in_c

rows, slots = tirx.Var("rows", "int32"), tirx.Var("slots", "int64")


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (T.max((rows + 3) // 4, 1), "max((rows + 3) / 4, 1)"),
        (T.cast(rows, "int64") * slots, "rows * slots"),
        (T.min(T.max(rows, 1) * 8, 5), "min(max(rows, 1) * 8, 5)"),
        (rows - (rows - 2), "rows - (rows - 2)"),
        (rows * (rows // 4), "rows * (rows / 4)"),
        (rows + rows % 4, "rows + rows % 4"),
        (T.int64(7), "7"),
    ],
)
def test_brackets_where_they_are_needed(expression, text):
    assert in_c(expression) == text


def test_other_operators_are_spelled_as_tvm_does():
    assert in_c(rows << 2) == "rows << 2"
