"""Marks of statements: they leave the text as it is, and each line has the number of its statement."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx

from moec.targets.cuda.pipeline import generated_with_statements, lowered_kernels
from moec.targets.cuda.text.line_marks import with_marks, without_marks
from moec.targets.tvm.text import lines_of
from moec.targets.tvm.text.statement_lines import (
    forgotten,
    number_of,
    numbered,
    statements_of,
    with_found_numbers,
)

from ..kernels.test_golden import ARCHITECTURES, KERNELS

MARKED = """\
void helper() {
  a();
}
void kernel() {
  int x = 1;
  moec_line(3);
  if (x) {
    moec_line(4);
    y =
        2;
  }
}
int after;
"""


def test_lines_have_the_number_of_the_last_mark_of_their_function():
    text, numbers = without_marks(MARKED)
    assert "moec_line" not in text
    assert dict(zip(text.splitlines(), numbers, strict=True)) == {
        "void helper() {": 0,
        "  a();": 0,
        "}": 0,
        "void kernel() {": 0,
        "  int x = 1;": 0,
        "  if (x) {": 3,
        "    y =": 4,
        "        2;": 4,
        "  }": 4,
        "int after;": 0,
    }
    assert without_marks(text) == (text, [0] * len(numbers))


def test_statements_without_numbers_get_no_mark():
    function = tirx.PrimFunc([], tirx.Evaluate(tirx.const(1, "int32")))
    assert with_marks(function).body.same_as(function.body)


SLOW = pytest.mark.nightly
NAMES = [name if name in ("route", "grouped_gemm_wgmma") else pytest.param(name, marks=SLOW) for name in KERNELS]


@pytest.mark.parametrize("name", NAMES)
def test_marks_leave_the_text_as_it_is(name):
    target = tvm.target.Target({"kind": "cuda", "arch": ARCHITECTURES.get(name, "sm_80")}, host={"kind": "llvm"})
    function = numbered(KERNELS[name]().with_attr("global_symbol", "kernel"))
    table = statements_of(function)
    with tvm.transform.PassContext(config={"tirx.UnrollLoop": {"explicit_unroll": 0}}):
        _, device = lowered_kernels(tvm.IRModule({"kernel": forgotten(function)}), target)
    marked = tvm.IRModule(
        {symbol: with_marks(with_found_numbers(part, table)) for symbol, part in device.functions.items()}
    )
    (plain, none), (code, numbers) = (generated_with_statements(module, target) for module in (device, marked))
    source = code.inspect_source()
    assert source == plain.inspect_source()
    assert set(none) == {0}
    assert len(numbers) == source.count("\n")
    texts: dict[int, str] = {}
    for line in lines_of(forgotten(function)):
        if line.statement is not None:
            texts[number_of(line.statement)] = texts.get(number_of(line.statement), "") + line.text
    conditions = [
        (line, texts[number])
        for line, number in zip(source.splitlines(), numbers, strict=True)
        if "if (" in line and number
    ]
    assert len(conditions) >= 2
    assert sum(" if " in text or "elif " in text for _, text in conditions) >= 0.9 * len(conditions)
