"""Skip a nest of loops whose inner loops have no steps.

An outer loop may have 2^40 steps where an inner one has none, because a tensor of these sizes takes no memory. Such a
nest must end at once at every level of optimisation of LLVM, so its inner sizes are checked once, before it starts::

    for i in range(n):                     if m > 0:
        for j in range(m):         ->          for i in range(n):
            y[i, j] = x[i, j]                      for j in range(m):
                                                       y[i, j] = x[i, j]
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.targets.tvm.phases.schedule import GENERIC

_DECLARATIONS = (tirx.Bind, tirx.DeclBuffer, tirx.AllocBuffer)


@tirx.transform.prim_func_pass(opt_level=0, name="SkipEmptyLoops")
class SkipEmptyLoops:
    """Runs on generic kernels; finished ones check what they need."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if not (function.attrs and function.attrs.get(GENERIC)):
            return function
        return function.with_body(tvm_ffi.structural_mutate(function.body, [(tirx.For, _skipped)]))


def _skipped(loop: tirx.For, _mutator: Any) -> tirx.Stmt:
    """The outermost loop of a nest, behind a check where its steps may do nothing."""
    acts = _acts(loop.body, {loop.loop_var})
    return loop if acts is None else tirx.IfThenElse(acts, loop, None)


def _acts(statement: tirx.Stmt, inside: set[tirx.Var]) -> tirx.Expr | None:
    """The condition under which a statement does anything at all, in variables other than those defined ``inside`` the
    nest; None where it always may."""
    match statement:
        case tirx.For():
            return _loop_acts(statement, inside)
        case tirx.IfThenElse():
            cases = [statement.then_case, *([] if statement.else_case is None else [statement.else_case])]
            return _any([_acts(case, inside) for case in cases])
        case tirx.SeqStmt():
            inside.update(step.var for step in statement.seq if isinstance(step, tirx.Bind))
            return _any([_acts(step, inside) for step in statement.seq if not isinstance(step, _DECLARATIONS)])
        case _:
            return None


def _loop_acts(loop: tirx.For, inside: set[tirx.Var]) -> tirx.Expr | None:
    inside.add(loop.loop_var)
    inner = _acts(loop.body, inside)
    if isinstance(loop.extent, tirx.IntImm) or inside.intersection(tirx.analysis.undefined_vars(loop.extent)):
        return inner
    steps = loop.extent > 0
    return steps if inner is None else tirx.all(steps, inner)


def _any(conditions: list[tirx.Expr | None]) -> tirx.Expr | None:
    present = [condition for condition in conditions if condition is not None]
    return tirx.any(*present) if present and len(present) == len(conditions) else None
