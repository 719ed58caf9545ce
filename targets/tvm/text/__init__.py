"""Kernels in TIR as text for people: the names that authors gave, plain literals, lines of at most 120 characters."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from moec.targets.tvm.text.elements import NameElements
from moec.targets.tvm.text.keep_names import HideBoundValues, ShowBoundValues
from moec.targets.tvm.text.names import VariableNames
from moec.targets.tvm.text.statement_lines import FindLines
from moec.targets.tvm.text.statements import Line, Statements
from moec.targets.tvm.text.unused_names import DropUnusedNames

NOTE = "TVMScript without the types of literals and the casts of indices to int64"

_SAID = ("global_symbol", "s_tir")
"""Attributes that the text says in another way."""


def printed(function: tirx.PrimFunc) -> str:
    """A function's text. Blocks, which only schedules need, are printed as plain loops."""
    return "".join(f"{line.text}\n" for line in lines_of(readable(function)))


def lines_of(function: tirx.PrimFunc) -> list[Line]:
    """The lines of a readable function's text, each with the statement that it is part of."""
    statements = Statements(VariableNames())
    _print_function(function, statements)
    return statements.lines


def readable(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function without blocks, statements that do nothing, and names that nothing uses. Numbers of statements
    stay."""
    blocks, nothing = s_tir.transform, tirx.transform.RemoveNoOp()
    phases = [nothing, DropUnusedNames(), nothing]
    if function.attrs and function.attrs.get("s_tir"):
        plain_loops = [blocks.LowerInitBlock(), blocks.ConvertBlocksToOpaque(), blocks.LowerOpaqueBlock()]
        simple = [HideBoundValues(of_every_type=True), blocks.StmtSimplify(), ShowBoundValues(), NameElements()]
        phases = [*plain_loops, *simple, *phases]
    return tvm.ir.transform.Sequential([*phases, FindLines()])(tvm.IRModule({"kernel": function}))["kernel"]


def _print_function(function: tirx.PrimFunc, statements: Statements) -> None:
    statements.header(f"# {NOTE}.")
    statements.header("@T.prim_func")
    statements.header(statements.signature(function))
    with statements.body():
        attributes = {key: value for key, value in sorted((function.attrs or {}).items()) if key not in _SAID}
        if attributes:
            statements.header(f"T.func_attr({statements.value(attributes)})")
        statements.print(function.body)
