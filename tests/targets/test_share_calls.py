"""Kernels are called once on the same arguments, but for those that may be fused or whose results change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tvm import relax
from tvm.script import tirx as T

from moec.targets.tvm.kernels.te_kernels import OPAQUE
from moec.targets.tvm.phases.share_calls import ShareCalls

MATRIX, ROWS = relax.TensorType([4, 8], "float32"), relax.TensorType([2, 16], "float32")


@T.prim_func(s_tir=True)
def copy(x: T.Buffer((2, 16), "float32"), y: T.Buffer((2, 16), "float32")):
    for i, j in T.grid(2, 16):
        y[i, j] = x[i, j]


class Program:
    """Writes calls as the lowering does."""

    def __init__(self, pattern: int) -> None:
        self.builder = relax.BlockBuilder()
        self.kernel = self.builder.add_func(copy.with_attr("op_pattern", pattern), "copy")

    def rows(self, x: relax.Expr) -> relax.Expr:
        return self.builder.emit(relax.op.reshape(x, [2, 16]))

    def call(self, x: relax.Expr) -> relax.Expr:
        return self.builder.emit(relax.call_tir(self.kernel, [x], ROWS))

    def change(self, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return self.builder.emit(relax.op.call_tir_inplace(self.kernel, [x, y], [1], [ROWS]))


Write = Callable[[Program, relax.Expr, relax.Expr], list[relax.Expr]]


def calls(write: Write, pattern: int = OPAQUE, *, returned: bool = False) -> int:
    """Number of kernel calls, except those in place, that the pass leaves of a program over two matrices.

    ``returned``: whether the tensors that ``write`` makes are results of the program; else another operator reads
    them."""
    program = Program(pattern)
    builder, given = program.builder, [relax.Var(name, MATRIX) for name in "xy"]
    with builder.function("main", given):
        with builder.dataflow():
            written = relax.Tuple(write(program, *given))
            result = builder.emit_output(written if returned else relax.op.concat(written, 0))
        builder.emit_func_output(result)
    main = ShareCalls()(builder.get())["main"]
    return main.script().count("R.call_tir(")


def test_the_same_rows_are_taken_once():
    assert calls(lambda program, x, _: [program.call(program.rows(x)), program.call(program.rows(x))]) == 1


def test_what_follows_from_what_is_shared_is_shared():
    def write(program: Program, x: relax.Expr, _y: relax.Expr) -> list[relax.Expr]:
        return [program.call(program.call(program.rows(x))) for _ in range(2)]

    assert calls(write) == 2


def test_results_of_the_model_stay_apart():
    """The caller may write to a result, so two results must not share memory."""
    assert calls(lambda program, x, _: [program.call(program.rows(x)) for _ in range(2)], returned=True) == 2
    rows = relax.op.reshape

    def write(program: Program, x: relax.Expr, _y: relax.Expr) -> list[relax.Expr]:
        return [program.builder.emit(rows(program.call(program.rows(x)), [32])) for _ in range(2)]

    assert calls(write, returned=True) == 2


def test_other_rows_stay_apart():
    assert calls(lambda program, x, y: [program.call(program.rows(x)), program.call(program.rows(y))]) == 2


@pytest.mark.parametrize(("pattern", "left"), [(0, 2), (OPAQUE, 1)])
def test_kernels_that_may_be_fused_stay_as_they_are(pattern, left):
    assert calls(lambda program, x, _: [program.call(program.rows(x)) for _ in range(2)], pattern) == left


def test_results_that_a_kernel_changes_stay_apart():
    """Also where it changes another view of them."""

    def write(program: Program, x: relax.Expr, y: relax.Expr) -> list[relax.Expr]:
        one, other = (program.call(program.rows(x)) for _ in range(2))
        return [program.change(program.rows(y), program.rows(one)), other]

    assert calls(write) == 2
