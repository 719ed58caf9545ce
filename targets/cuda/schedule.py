"""Threads for the kernels that do not come finished from the CUDA target.

Generic kernels get TVM's own schedules for GPUs (dlight). Kernels that run in a fixed order get one thread, or, where
their outermost loop is parallel, one thread for each of its turns: they are rare and small, and what counts is that the
data stays on the device.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import dlight

BLOCK_THREADS = 256
"""Threads of a block that shares out the turns of a parallel loop."""


@tvm.ir.transform.module_pass(opt_level=0, name="ScheduleForGpu")
class ScheduleForGpu:
    """Binds every kernel to threads of the device."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for symbol, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc) and _runs_in_order(function):
                module[symbol] = in_order(function)
        others = {symbol: function for symbol, function in module.functions.items() if not _has_plain_sizes(function)}
        module.update(dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(tvm.IRModule(others)))
        rules = (dlight.gpu.Matmul(), dlight.gpu.GEMV(), dlight.gpu.Reduction(), dlight.gpu.GeneralReduction())
        return dlight.ApplyDefaultSchedule(*rules, dlight.gpu.Fallback())(module)


def _has_plain_sizes(function: tvm.ir.BaseFunc) -> bool:
    """Whether every size of every tensor is a number, a variable, or a sum or product of such.

    Of others, such as the larger of two sizes, TVM does not find out how much of a tile a block of threads needs, so
    that tiles would have no fixed size. One thread for each element of the result needs none.
    """
    if not isinstance(function, tirx.PrimFunc):
        return True
    sizes = [size for buffer in function.params if isinstance(buffer.ty, tirx.BufferType) for size in buffer.shape]
    found: list[Any] = []
    for size in sizes:
        tvm_ffi.structural_walk(size, [(kind, found.append) for kind in (tirx.Max, tirx.Min, tirx.Select)])
    return not found


def in_order(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function as a kernel of one thread, or of one thread for each turn of its outermost parallel loop."""
    body = function.body
    if isinstance(body, tirx.For) and body.kind == tirx.ForKind.PARALLEL:
        return function.with_body(_thread_per_turn(body))
    return function.with_body(
        _bound(_variable("block"), "blockIdx.x", 1, _bound(_variable("thread"), "threadIdx.x", 1, body))
    )


def _thread_per_turn(loop: tirx.For) -> tirx.Stmt:
    block, thread = _variable("block"), _variable("thread")
    turn = block * BLOCK_THREADS + thread
    inside = tirx.SeqStmt([tirx.Bind(loop.loop_var, loop.min + turn), loop.body])
    inside = tirx.IfThenElse(turn < loop.extent, inside, None)
    # A grid cannot be empty, a loop can.
    blocks = tirx.max((loop.extent + (BLOCK_THREADS - 1)) // BLOCK_THREADS, tirx.const(1, "int64"))
    return _bound(block, "blockIdx.x", blocks, _bound(thread, "threadIdx.x", BLOCK_THREADS, inside))


def _variable(name: str) -> tirx.Var:
    return tirx.Var(name, "int64")


def _bound(variable: tirx.Var, tag: str, extent: Any, body: tirx.Stmt) -> tirx.For:
    """A loop whose turns are threads or blocks."""
    extent = tirx.const(extent, "int64") if isinstance(extent, int) else extent
    zero = tirx.const(0, "int64")
    thread = tirx.IterVar(tvm.ir.Range(zero, extent), _variable(tag), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(variable, zero, extent, tirx.ForKind.THREAD_BINDING, body, thread)


def _runs_in_order(function: tirx.PrimFunc) -> bool:
    """Whether it came finished, but for a processor: the target's own kernels are not in TVM's form of schedules."""
    return bool(function.attrs.get("tirx.is_scheduled")) and bool(function.attrs.get("s_tir"))
