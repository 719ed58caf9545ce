"""Sizes as text: a text that is computed from sizes is parsed to the same sizes."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import sympy

from moec.common.guards import parse_size
from moec.passes.shapes.symbolic import expression, size, text_of

A, B = size("a"), size("b")


@pytest.mark.parametrize(
    ("computed", "text"),
    [
        (2 * sympy.floor((A + 15) / 16) + 1, "2*((a + 15)//16) + 1"),
        (sympy.floor(sympy.floor(A / 2) / B), "(((a//2))//b)"),
        (2 * sympy.Mod(A + B, 3), "2*(((a + b) % 3))"),
        (sympy.Min(A, 3) + sympy.Max(A, B), "max(a, b) + min(3, a)"),
        (3 * (A + B) ** 2, "3*(a + b)*(a + b)"),
        (sympy.floor(A**2 / B), "((a*a)//b)"),
    ],
)
def test_text_is_read_as_the_same(computed, text):
    assert text_of(computed) == text
    again = expression(ir.SymbolicDim(text))
    for sizes in ({"a": 37, "b": 5}, {"a": 0, "b": 1}, {"a": 16, "b": 33}):
        expected = computed.subs({A: sizes["a"], B: sizes["b"]})
        assert parse_size(text)(sizes) == expected == again.subs({A: sizes["a"], B: sizes["b"]})


@pytest.mark.parametrize(("computed", "text"), [(1 / (A + 1), "1/(a + 1)"), (sympy.sqrt(A), "sqrt(a)"), (2**A, "2**a")])
def test_powers_that_are_no_products_are_not_written_as_such(computed, text):
    assert text_of(computed) == text
