"""Numbers of statements: kept by TVM's phases, found again where phases make statements anew."""

from __future__ import annotations

import json
import re

import pytest
import tvm
import tvm_ffi
from tvm import tirx
from tvm.script import tirx as T

from moec.targets.cpu.hardware.machine import Machine
from moec.targets.tvm.phases.host_code import ASSEMBLY, LLVM, STATEMENTS, compile_kernels
from moec.targets.tvm.phases.line_tables import with_subprograms, without_lines
from moec.targets.tvm.phases.pipeline import KERNEL_PIPELINE
from moec.targets.tvm.phases.sources import assembly_of
from moec.targets.tvm.text.statement_lines import (
    FUNCTION,
    FindLines,
    FinishLines,
    forgotten,
    number_of,
    numbered,
    statements_of,
)


@T.prim_func(s_tir=True)
def scaled(x: T.Buffer((64, 40), "float32"), y: T.Buffer((64, 40), "float32")):
    T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
    for row in T.parallel(T.int64(64)):
        if x[row, T.int64(0)] < T.float32(0):
            for column in range(T.int64(40)):
                y[row, column] = T.float32(0)
        else:
            for column in range(T.int64(40)):
                y[row, column] = T.exp(x[row, column])


NAMED = {"For row": 2, "IfThenElse": 3, "For column": 4, "zero": 5, "For column again": 6, "exp": 7}
"""The statements' numbers in the order of the text."""


def numbers(function: tirx.PrimFunc) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []

    def see(statement: tirx.Stmt) -> None:
        if not isinstance(statement, tirx.SeqStmt):
            found.append((type(statement).__name__, number_of(statement)))

    tvm_ffi.structural_walk(function.body, [(tirx.Stmt, see)], order="pre")
    return found


def test_statements_are_numbered_in_the_order_of_the_text():
    kinds = ["For", "IfThenElse", "For", "BufferStore", "For", "BufferStore"]
    assert numbers(numbered(scaled)) == list(zip(kinds, NAMED.values(), strict=True))
    table = statements_of(numbered(scaled))
    assert table is not None
    assert table.parents == [0, 0, 1, 2, 3, 4, 3, 6]
    assert statements_of(scaled) is None
    assert statements_of(forgotten(numbered(scaled))) is None


def without_numbers(function: tirx.PrimFunc, kinds: tuple[type, ...]) -> tirx.PrimFunc:
    """The function after a phase that made statements of these kinds anew."""

    def anew(statement: tirx.Stmt) -> tirx.Stmt:
        if isinstance(statement, tirx.For):
            return tirx.For(statement.loop_var, statement.min, statement.extent, statement.kind, statement.body)
        assert isinstance(statement, tirx.IfThenElse)
        return tirx.IfThenElse(statement.condition, statement.then_case, statement.else_case)

    return function.with_body(tvm_ffi.structural_map(function.body, [(kind, anew) for kind in kinds]))


def test_loops_and_branches_that_were_made_anew_get_their_numbers_again():
    function = numbered(scaled)
    anew = without_numbers(function, (tirx.For, tirx.IfThenElse))
    assert numbers(anew) != numbers(function)
    assert numbers(FindLines()(tvm.IRModule({"f": anew}))["f"]) == numbers(function)


def test_a_new_statement_is_like_the_one_that_it_prepares():
    function = numbered(scaled)
    bound = tirx.SeqStmt([tirx.Bind(tirx.Var("t", "int32"), tirx.const(3, "int32")), function.body])
    found = numbers(FindLines()(tvm.IRModule({"f": function.with_body(bound)}))["f"])
    assert found[0] == ("Bind", NAMED["For row"])


def test_what_checks_arguments_belongs_to_the_function():
    function = numbered(scaled)
    checked = tirx.SeqStmt([tirx.Evaluate(tirx.const(0, "int32")), function.body])
    finished = FinishLines()(tvm.IRModule({"f": function.with_body(checked)}))["f"]
    assert numbers(finished)[:2] == [("Evaluate", FUNCTION), ("For", NAMED["For row"])]
    assert statements_of(finished) is None
    assert finished.span.line == FUNCTION


def test_functions_without_numbers_stay_as_they_are():
    for change in (FindLines(), FinishLines()):
        assert numbers(change(tvm.IRModule({"f": scaled}))["f"]) == numbers(scaled)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    module = tvm.IRModule({"scaled": scaled.with_attr("global_symbol", "scaled")})
    return compile_kernels(module, tvm.target.Target(Machine.for_name("avx2").llvm), KERNEL_PIPELINE)["scaled"]


COMPARISONS = {LLVM: r"fcmp olt", ASSEMBLY: r"u?comiss"}
"""The instruction that compares floats, which one statement alone does."""


@pytest.mark.parametrize("form", [LLVM, ASSEMBLY])
def test_each_line_of_code_has_the_number_of_its_statement(files, form):
    lines, numbers = files[form].decode().splitlines(), json.loads(files[STATEMENTS])[form]
    assert len(lines) == len(numbers)
    assert {number for line, number in zip(lines, numbers, strict=True) if not line} <= {0}
    assert 0 not in {number for line, number in zip(lines, numbers, strict=True) if line}
    assert set(numbers) - {0} >= {FUNCTION, NAMED["IfThenElse"], NAMED["exp"]}
    shown = {number for line, number in zip(lines, numbers, strict=True) if re.search(COMPARISONS[form], line)}
    assert shown == {NAMED["IfThenElse"]}


def test_code_is_the_same_as_without_numbers(files):
    """The pipeline without numbered statements generates the same instructions."""
    module = tvm.IRModule({"scaled": scaled.with_attr("global_symbol", "scaled")})
    target = tvm.target.Target(Machine.for_name("avx2").llvm)
    plain = tirx.build(module, target=target, pipeline=KERNEL_PIPELINE).inspect_source("asm")
    assert assembly_of(plain, "scaled").text == files[ASSEMBLY].decode()


def test_bodies_of_parallel_loops_become_subprograms_once():
    llvm = (
        "define void @f() !dbg !1 {\n  ret void, !dbg !3\n}\n"
        "define void @part() #4 {\n    #dbg_value(i32 0, !5, !6, !3)\n  ret void, !dbg !3\n}\n"
        "define void @other() {\n  ret void\n}\n"
        '!1 = distinct !DISubprogram(name: "f", unit: !0, retainedNodes: !2)\n!3 = !DILocation(line: 7, scope: !1)\n'
    )
    described = with_subprograms(llvm)
    assert "define void @part() #4 !dbg !4 {\n  ret void, !dbg !5\n}" in described
    assert '!4 = distinct !DISubprogram(name: "f", unit: !0)\n!5 = !DILocation(line: 7, scope: !4)\n' in described
    assert "define void @other() {\n" in described
    assert "define void @f() !dbg !1 {\n  ret void, !dbg !3\n" in described
    assert with_subprograms(described) == described
    assert with_subprograms("define void @f() {\n  ret void\n}\n") == "define void @f() {\n  ret void\n}\n"


def test_objects_hold_nothing_for_debuggers(files):
    assert b"debug_" not in files["o"]
    code, data = "f:\n\tret\n", "\t.section\t.rodata\n\t.byte\t1\n"
    lined = code.replace("\tret", '\t.file\t1 "."\n\t.loc\t1 7 0\n\tret')
    assert without_lines(lined + '\t.section\t.debug_line,"",@progbits\n.L0:\n' + data) == code + data
