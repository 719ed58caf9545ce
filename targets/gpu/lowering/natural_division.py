"""Division of numbers that are not negative, in kernels that a schedule made.

TVM cannot prove that sizes are not negative, so it computes quotients that are rounded down for all signs: eight
operations, which also fill the text of a kernel. Sizes, numbers of blocks and threads, and their sums, products and
quotients need only the machine's own division.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.tirx.buffer import is_buffer_var

_CLOSED = (tirx.Add, tirx.Mul, tirx.FloorDiv, tirx.FloorMod, tirx.Div, tirx.Mod, tirx.Min)
"""Operations whose result is not negative where no operand is."""


@tirx.transform.prim_func_pass(opt_level=0, name="DivideNaturalNumbers")
class DivideNaturalNumbers:
    """Replace quotients and remainders that are rounded down by the machine's, where no operand can be negative. Those
    by a power of two stay: they are shifts."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        natural = _natural_variables(function)

        def divide(division: tirx.FloorDiv | tirx.FloorMod) -> Any:
            if _is_power_of_two(division.b) or not all(_is_natural(part, natural) for part in (division.a, division.b)):
                return division
            rounded = tirx.truncdiv if isinstance(division, tirx.FloorDiv) else tirx.truncmod
            return rounded(division.a, division.b)

        body = tvm_ffi.structural_map(function.body, [((tirx.FloorDiv, tirx.FloorMod), divide)])
        return function.with_body(body)


def _natural_variables(function: tirx.PrimFunc) -> set[tvm.ir.Var]:
    """Sizes of tensors, numbers of threads, and variables of loops that begin at 0 or above."""
    naturals: set[tvm.ir.Var] = set()
    for parameter in function.params:
        if is_buffer_var(parameter):
            for size in parameter.ty.shape:
                tvm_ffi.structural_walk(size, [(tvm.ir.Var, naturals.add)])

    def note(loop: tirx.For) -> None:
        if isinstance(loop.min, tirx.IntImm) and int(loop.min) >= 0:
            naturals.add(loop.loop_var)

    def note_thread(thread: tirx.IterVar) -> None:
        if thread.thread_tag:
            naturals.add(thread.var)

    tvm_ffi.structural_walk(function.body, [(tirx.For, note), (tirx.IterVar, note_thread)])
    return naturals


def _is_natural(value: tvm.ir.Expr, natural: set[tvm.ir.Var]) -> bool:
    """Whether a value cannot be negative."""
    if isinstance(value, tirx.IntImm):
        return int(value) >= 0
    if isinstance(value, tvm.ir.Var):
        return value in natural
    if isinstance(value, tirx.Cast):
        return str(value.value.ty.dtype) in ("int32", "int64") and _is_natural(value.value, natural)
    return isinstance(value, _CLOSED) and _is_natural(value.a, natural) and _is_natural(value.b, natural)


def _is_power_of_two(value: tvm.ir.Expr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) > 0 and int(value) & (int(value) - 1) == 0
