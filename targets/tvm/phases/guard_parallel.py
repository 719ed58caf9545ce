"""Run a parallel loop on threads only where there is enough work for them.

The pass handles the parallel loops of generic kernels, and those annotated with the work of an iteration. Sizes are
known only at run time, so the loop is generated twice, behind a test. The parallel form merges the loop nest that the
schedule marked into one loop, whose index is divided to find the indices of the nest; the serial form stays a nest. In
both forms a thread computes whole elements, so the results are the same.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.targets.tvm.phases.schedule import COLLAPSED, GENERIC, PARALLEL_THRESHOLD, WORK


@tirx.transform.prim_func_pass(opt_level=0, name="GuardParallelLoops")
class GuardParallelLoops:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        generic = bool(function.attrs.get(GENERIC))

        def guarded(loop: tirx.For) -> tirx.Stmt:
            if loop.kind != tirx.ForKind.PARALLEL or not (generic or WORK in loop.annotations):
                return loop
            work = _work(loop) if generic else loop.extent * loop.annotations[WORK]
            serial = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
            return tirx.IfThenElse(work >= PARALLEL_THRESHOLD, _collapsed(loop), serial)

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.For, guarded)]))


def _collapsed(loop: tirx.For) -> tirx.For:
    """One parallel loop for the loop and the marked loops nested directly in it."""
    nest = [loop]
    while isinstance(nest[-1].body, tirx.For) and COLLAPSED in nest[-1].body.annotations:
        nest.append(nest[-1].body)
    if len(nest) == 1:
        return loop
    collapsed = tirx.Var("index", "int64")
    index: Any = collapsed
    bindings, total = [], _wide(loop.extent)
    for inner in reversed(nest[1:]):
        # Indices are not negative, so the quotient may be truncated; a size of 0 leaves no index to divide.
        outer, extent = tirx.Var("outer", "int64"), _wide(inner.extent)
        bindings += [tirx.Bind(outer, tirx.truncdiv(index, extent)), _start(inner, index - outer * extent)]
        index, total = outer, total * extent
    body = tirx.SeqStmt([*bindings, _start(loop, index), nest[-1].body])
    return tirx.For(collapsed, tirx.const(0, "int64"), total, tirx.ForKind.PARALLEL, body)


def _start(loop: tirx.For, turn: Any) -> tirx.Bind:
    """Binding of the loop's variable in iteration ``turn``, counted from 0."""
    dtype = loop.loop_var.ty.dtype
    return tirx.Bind(loop.loop_var, loop.min + turn.astype(dtype))


def _wide(extent: Any) -> Any:
    return extent.astype("int64")


def _work(loop: tirx.For) -> Any:
    """Elements that the loop computes: its extent times the extents of inner loops that do not depend on the loop."""
    inner: list[Any] = []
    variables = {loop.loop_var}

    def visit(nested: tirx.For) -> None:
        variables.add(nested.loop_var)
        inner.append(nested.extent)

    def name(subexpression: tirx.Bind) -> None:
        variables.add(subexpression.var)

    tvm_ffi.structural_walk(loop.body, [(tirx.For, visit), (tirx.Bind, name)])
    work = loop.extent
    for extent in inner:
        if not variables.intersection(tirx.analysis.undefined_vars(extent)):
            work = work * extent
    return work
