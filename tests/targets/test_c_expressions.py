"""Expressions of sizes in C."""

from __future__ import annotations

import pytest
from tvm import tirx
from tvm.script import tirx as T

from moec.common.errors import UnsupportedError
from moec.targets.tvm.sizes.c_expressions import in_c, in_exact_c, in_floating_c

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


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ((rows - 9) // 4 - 1, "floor_div(rows - 9, 4) - 1"),
        (T.min(rows, -3) % 5, "floor_mod(min(rows, (-3)), 5)"),
        (T.Select(T.And(rows < 2, rows != 0), slots, slots + 1), None),
        (T.Select(rows + 1 <= 2, T.cast(rows, "int64"), slots) * 2, "(rows + 1 <= 2 ? rows : slots) * 2"),
    ],
)
def test_numbers_for_a_compiler_may_be_negative(expression, text):
    """An operator without a spelling is refused."""
    if text is not None:
        assert in_exact_c(expression, lambda variable: variable.name) == text
        return
    with pytest.raises(UnsupportedError, match="has no spelling in C"):
        in_exact_c(expression, lambda variable: variable.name)


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (rows * 8 * (slots * 3), "24.0 * rows * slots"),
        (rows * 1, "(double)rows"),
        ((rows * 2 + slots) * 4, "4.0 * (2.0 * rows + (double)slots)"),
        (T.max(rows - 1, 0) * 4, "4.0 * max(rows - 1, 0)"),
        (T.Select(rows < 2, rows, 5) * 4, "4.0 * (rows < 2 ? rows : 5)"),
    ],
)
def test_numbers_of_bytes_cannot_overflow(expression, text):
    assert in_floating_c(expression, lambda variable: variable.name) == text
