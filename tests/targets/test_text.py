"""Printed TIR: valid Python, plain literals, the authors' names, and no line over 120 characters."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.script import tirx as T

from moec.common.short_lines import WIDTH, wrapped
from moec.targets.tvm.text import lines_of, printed

from ..conftest import GOLDEN


def body_of(kernel: tirx.PrimFunc) -> list[str]:
    """The lines after the signature and the attributes."""
    lines = printed(kernel).splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("    T.func_attr"))
    return [line[4:] for line in lines[begin + 1 :]]


def as_python(text: str) -> ast.Module:
    """The text as Python, without type parameters, which need Python 3.12."""
    return ast.parse(re.sub(r"^(def \w+)\[[^\]]*\]", r"\1", text, flags=re.MULTILINE))


def test_names_used_twice_are_kept_and_literals_are_plain():
    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle):
        T.func_attr({"tirx.noalias": True})
        n = T.int64()
        x = T.match_buffer(x_handle, (n,), "float32")
        y = T.match_buffer(y_handle, (n,), "float32")
        half: T.let = n // T.int64(2)
        for i in range(half):
            y[i] = T.Select(x[i] > T.float32(0), x[i + half], T.float32(0.1)) * T.float32(float("-inf"))

    assert body_of(kernel) == [
        "half: T.let = n // 2",
        "for i in range(half):",
        '    y[i] = T.Select(0.0 < x[i], x[i + half], 0.1) * float("-inf")',
    ]


def test_operators_keep_the_order_of_evaluation():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32"), n: T.int32, m: T.int32):
        T.func_attr({"tirx.noalias": True})
        x[0] = (x[1] - (x[2] - x[3])) / (x[4] / x[5])
        x[n * (m + 1) // 2 % 3] = x[T.max(n, -m) & (m | 1)]
        x[6] = x[0:8][T.truncdiv(n, m)] if False else T.cast(n << 2, "float32")

    assert body_of(kernel) == [
        "x[0] = (x[1] - (x[2] - x[3])) / (x[4] / x[5])",
        "x[n * (m + 1) // 2 % 3] = x[T.max(n, m * -1) & (m | 1)]",
        'x[6] = T.cast(n << 2, "float32")',
    ]


def test_a_name_in_an_expression_is_bound_before_its_statement_but_not_in_front_of_a_condition():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32"), n: T.int32):
        T.func_attr({"tirx.noalias": True})
        x[0] = 1.0

    variable = tirx.Var("r", "float32")
    square = tirx.Let(variable, tirx.exp(tirx.const(2.0)), variable * variable)
    x, n = kernel.params
    condition = tirx.if_then_else(n > 0, square, tirx.const(1.0))
    body = tirx.SeqStmt([tirx.BufferStore(x, square, [0]), tirx.BufferStore(x, condition, [1])])
    assert body_of(kernel.with_body(body)) == [
        "r: T.let = T.exp(2.0)",
        "x[0] = r * r",
        "x[1] = T.if_then_else(n > 0, T.Let(r * r, where={r: T.exp(2.0)}), 1.0)",
    ]


def test_names_are_free_again_after_their_block():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32"), n: T.int32):
        T.func_attr({"tirx.noalias": True})
        if n > 0:
            for i in range(n):
                x[i] = 1.0
        elif n > -9:
            for i in range(2, n + 9):
                for n_inside in T.vectorized(2):
                    x[i + n_inside] = 2.0
        while x[0] > 0.0:
            T.evaluate(T.call_extern("void", "wait"))

    assert body_of(kernel) == [
        "if n > 0:",
        "    for i in range(n):",
        "        x[i] = 1.0",
        "elif n > -9:",
        "    for i in range(2, n + 9):",
        "        for n_inside in T.vectorized(2):",
        "            x[i + n_inside] = 2.0",
        "while x[0] > 0.0:",
        '    T.call_extern("void", "wait")',
    ]


def test_every_line_knows_its_statement():
    @T.prim_func
    def kernel(x: T.Buffer((8,), "float32"), n: T.int32):
        for i in range(n):
            x[i] = 1.0

    kinds = [type(line.statement).__name__ for line in lines_of(kernel)]
    assert kinds == ["NoneType", "NoneType", "NoneType", "For", "BufferStore"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.tir")), ids=lambda path: path.stem)
def test_golden_texts_are_python(path):
    text = path.read_text()
    as_python(text)


NAMES = st.sampled_from(["x", "head_of_group", "T.max(first, second)", 'f("a, b + c")', "y[i, j + 1]", "3.5"])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([" + ", " * ", " - ", ", ", " and "]), NAMES), min_size=1, max_size=40))
def test_wrapped_lines_are_short_and_the_same_code(parts):
    value = "".join(operator + name for operator, name in parts)
    arithmetic = value.replace(", ", " // ")
    for line in (f"y[i] = x{value}", f"if x{arithmetic}:", f"x: T.let = f(g(x{value}))"):
        lines = wrapped(f"        {line}", parenthesized=True)
        assert max(map(len, lines)) <= WIDTH
        assert (len(lines) == 1) == (len(line) + 8 <= WIDTH)
        block = "\n            pass" if line.endswith(":") else ""
        trees = [ast.parse(f"if True:\n{text}{block}") for text in (f"        {line}", "\n".join(lines))]
        assert ast.dump(trees[0]) == ast.dump(trees[1])


def test_a_line_that_cannot_be_cut_stays_long():
    line = "x" * (WIDTH + 1)
    assert wrapped(line) == [line]
