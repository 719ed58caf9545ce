"""Run the parallel loops of generic kernels in one thread where the work is too small to share.

Sizes are known only when the program runs, so the choice is made there: the loop is generated twice, behind a test.
Each thread computes whole elements in either form, so the results are the same.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.targets.tvm.schedule import GENERIC, PARALLEL_THRESHOLD


@tirx.transform.prim_func_pass(opt_level=0, name="GuardParallelLoops")
class GuardParallelLoops:
    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        if not function.attrs.get(GENERIC):
            return function
        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.For, _guarded)]))


def _guarded(loop: tirx.For) -> tirx.Stmt:
    if loop.kind != tirx.ForKind.PARALLEL:
        return loop
    serial = tirx.For(loop.loop_var, loop.min, loop.extent, tirx.ForKind.SERIAL, loop.body)
    return tirx.IfThenElse(_work(loop) >= PARALLEL_THRESHOLD, loop, serial)


def _work(loop: tirx.For) -> Any:
    """Elements computed by the loop: its extent times those of the loops in it whose extent is known outside."""
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
