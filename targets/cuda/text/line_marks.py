"""Marks in generated CUDA C that say which statement of TIR the lines after them come from.

TVM's generator of C writes no line numbers. A mark is a statement that calls a function which does not exist. It is a
line of its own in the text, and is removed before anyone reads or compiles that.
"""

from __future__ import annotations

import re

import tvm_ffi
from tvm import tirx

from moec.targets.tvm.text.statement_lines import number_of

_CALL = "moec_line"
_MARK = re.compile(rf" *{_CALL}\((?P<number>\d+)\);")
_END = re.compile(r"\}")
"""The beginning of a line that ends a function."""


def with_marks(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with a mark before each statement that has a number."""

    def marked(statement: tirx.Stmt) -> tirx.Stmt:
        number = 0 if isinstance(statement, (tirx.SeqStmt, tirx.AttrStmt)) else number_of(statement)
        if not number:
            return statement
        mark = tirx.Evaluate(tirx.call_extern("void", _CALL, tirx.const(number, "int32")))
        return tirx.SeqStmt([mark, statement])

    return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Stmt, marked)]))


def without_marks(source: str) -> tuple[str, list[int]]:
    """The text without marks, and for each of its lines the number of the last mark before it; 0 outside of functions
    and before their first mark."""
    lines, numbers, last = list[str](), list[int](), 0
    for line in source.splitlines(keepends=True):
        mark = _MARK.match(line)
        if mark:
            last = int(mark["number"])
            continue
        last = 0 if _END.match(line) else last
        lines.append(line)
        numbers.append(last)
    return "".join(lines), numbers
