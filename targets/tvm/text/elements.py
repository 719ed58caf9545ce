"""Names for what schedules compute again and again: the element that a thread of a generic kernel is for."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

_LAUNCH = "thread_extent"


@tirx.transform.prim_func_pass(opt_level=0, name="NameElements")
class NameElements:
    """Bind ``element = block * threads + thread`` at the beginning of a thread's code, where the code has that sum more
    than once. Kernels written thread by thread stay as they are."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        threads: dict[tvm.ir.Var, str] = {}

        def note(thread: tirx.IterVar) -> None:
            threads[thread.var] = thread.thread_tag

        def name(launch: tirx.AttrStmt) -> tirx.AttrStmt:
            inner = launch.body
            is_innermost = not (isinstance(inner, tirx.AttrStmt) and inner.attr_key == _LAUNCH)
            named = _with_element(inner, threads) if launch.attr_key == _LAUNCH and is_innermost else None
            return launch if named is None else tirx.AttrStmt(launch.node, _LAUNCH, launch.value, named, launch.span)

        tvm_ffi.structural_walk(function.body, [(tirx.IterVar, note)])
        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.AttrStmt, name)]))


def _with_element(code: tirx.Stmt, threads: dict[tvm.ir.Var, str]) -> tirx.Stmt | None:
    sums: list[tirx.Add] = []

    def note(addition: tirx.Add) -> None:
        if _is_element(addition, threads):
            sums.append(addition)

    tvm_ffi.structural_walk(code, [(tirx.Add, note)])
    if len(sums) < 2 or not all(tvm_ffi.structural_equal(sums[0], other) for other in sums):
        return None
    element = tirx.Var("element", str(sums[0].ty.dtype))
    named = tvm_ffi.structural_map(code, [(tirx.Add, lambda sum_: element if _is_element(sum_, threads) else sum_)])
    return tirx.SeqStmt([tirx.Bind(element, sums[0]), named])


def _is_element(addition: tirx.Add, threads: dict[tvm.ir.Var, str]) -> bool:
    """Whether a sum is that of a thread's number and of a multiple of its block's."""
    product, thread = addition.a, _without_cast(addition.b)
    if not isinstance(product, tirx.Mul) or not isinstance(product.b, tirx.IntImm):
        return False
    return threads.get(_without_cast(product.a)) == "blockIdx.x" and threads.get(thread) == "threadIdx.x"


def _without_cast(value: tvm.ir.Expr) -> tvm.ir.Expr:
    return value.value if isinstance(value, tirx.Cast) else value
