"""Schedules for the kernels that a GPU's target does not write for threads itself, and their lowering.

Generic kernels get TVM's own schedules for GPUs (dlight). Kernels that run in a fixed order get one thread for each
iteration of their outermost loop if that is parallel. Others, such as those that list nonzero elements, get a single
thread: they are rare and small, and all that matters is that the data stays on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.schedule import ScheduleError

from moec.targets.gpu.lowering.natural_division import DivideNaturalNumbers
from moec.targets.tvm.kernels.te_kernels import checking, without_checks
from moec.targets.tvm.text.elements import NameElements

_NAME = "kernel"
BLOCK_THREADS = 256
"""Threads of a block that computes iterations of a parallel loop."""


@tvm.ir.transform.module_pass(opt_level=0, name="ScheduleForGpu")
class ScheduleForGpu:
    """Bind every kernel that is not yet bound to threads of the device."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for symbol, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc) and _runs_in_order(function):
                module[symbol] = in_order(function)
            elif isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled"):
                module[symbol] = tiled(function)
        return module


def tiled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function under the first of TVM's schedules that fits it and can be lowered.

    Tiles in shared memory and registers need sizes that are known at compile time. TVM does not find them if sizes are
    maxima or quotients. Some reductions are also rejected by its schedules, or by the phases after them. The last
    schedule is always possible: one thread for each element of the result, without tiles.
    """
    function, assertions = without_checks(function)
    gpu = dlight.gpu
    rules = (gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
    try:
        scheduled = _under(function, rules)
    except ScheduleError:  # a schedule seemed to fit, but does not
        scheduled = None
    if scheduled is None or not _can_be_lowered(scheduled):
        scheduled = _under(function, (gpu.Fallback(),))
    return checking(scheduled[_NAME].without_attr("global_symbol"), assertions)


def _allocation_phases() -> list[tvm.transform.Pass]:
    """The first phases of lowering a scheduled kernel, up to allocating memory where it is used, no larger than
    needed."""
    lower = s_tir.transform
    return [
        lower.CanonicalizeLoop(),
        lower.LowerCrossThreadReduction(),
        lower.LowerInitBlock(),
        lower.PlanAndUpdateBufferAllocationLocation(),
        lower.ConvertBlocksToOpaque(),
        lower.LiftThreadBinding(),
        lower.CompactBufferAllocation(),
    ]


def scheduled_kernel_phases() -> list[tvm.transform.Pass]:
    """The phases that lower a scheduled kernel to one function, which still holds the parts of host and device."""
    lower, loops = s_tir.transform, tirx.transform
    return [
        # Blocks, as schedules see them, become plain loops over flat buffers.
        *_allocation_phases(),
        lower.UnifyThreadBinding(),
        lower.LowerMatchBuffer(),
        lower.StmtSimplify(),
        lower.LowerOpaqueBlock(),
        DivideNaturalNumbers(),
        loops.FlattenBuffer(),
        loops.BF16ComputeLegalize(),
        loops.NarrowDataType(32),
        # Other loops stay loops: the text remains readable, and the vendor's compiler unrolls where that pays.
        loops.VectorizeLoop(True),
        # Virtual threads of schedules: one thread does the work of several.
        lower.InjectVirtualThread(),
        loops.StorageRewrite(),
        loops.UnrollLoop(),
        lower.RenormalizeSplitPattern(),
        loops.StmtSimplify(),
        loops.RemoveNoOp(),
        lower.RewriteUnsafeSelect(),
        loops.FP8ComputeLegalize(),
        loops.VerifyMemory(),
        loops.AnnotateEntryFunc(),
        NameElements(),
        # Barriers between threads that share memory.
        lower.ThreadSync("shared"),
        lower.ThreadSync("shared.dyn"),
        lower.ThreadSync("warp"),
        lower.LowerThreadAllreduce(),
        lower.MergeSharedMemoryAllocations(),
    ]


def _under(function: tirx.PrimFunc, rules: Sequence[Any]) -> tvm.IRModule:
    """A module with the function under the first of the schedules that accepts it."""
    module = tvm.IRModule({_NAME: function.with_attr("global_symbol", _NAME)})
    return dlight.ApplyDefaultSchedule(*rules)(module)


def _can_be_lowered(module: tvm.IRModule) -> bool:
    """Whether TVM's phases can lower the scheduled kernel: whether, once compacted, all memory of blocks and threads
    has a static size, and reductions by several threads pass their checks."""
    try:
        compact = tvm.ir.transform.Sequential(_allocation_phases())(module)[_NAME]
    except ValueError:  # a failed check of LowerCrossThreadReduction
        return False
    dynamic: list[Any] = []

    def visit(block: s_tir.SBlock) -> None:
        for buffer in block.alloc_buffers:
            if buffer.scope() != "global":
                dynamic.extend(size for size in buffer.shape if not isinstance(size, tirx.IntImm))

    tvm_ffi.structural_walk(compact.body, [(s_tir.SBlock, visit)])
    return not dynamic


def in_order(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function as a kernel of one thread, or of one thread for each iteration of its outermost loop if that is
    parallel."""
    function, assertions = without_checks(function)
    body = function.body
    if isinstance(body, tirx.For) and body.kind == tirx.ForKind.PARALLEL:
        bound = _thread_per_turn(body)
    else:
        bound = _bound(_variable("block"), "blockIdx.x", 1, _bound(_variable("thread"), "threadIdx.x", 1, body))
    return checking(function.with_body(bound), assertions)


def _thread_per_turn(loop: tirx.For) -> tirx.Stmt:
    block, thread = _variable("block"), _variable("thread")
    turn = block * BLOCK_THREADS + thread
    inside = tirx.SeqStmt([tirx.Bind(loop.loop_var, loop.min + turn), loop.body])
    inside = tirx.IfThenElse(turn < loop.extent, inside, None)
    blocks = (loop.extent + (BLOCK_THREADS - 1)) // BLOCK_THREADS
    return _bound(block, "blockIdx.x", blocks, _bound(thread, "threadIdx.x", BLOCK_THREADS, inside))


def _variable(name: str) -> tirx.Var:
    return tirx.Var(name, "int64")


def _bound(variable: tirx.Var, tag: str, extent: Any, body: tirx.Stmt) -> tirx.For:
    """A loop whose iterations are threads or blocks; ``tag``: the axis, such as ``blockIdx.x``."""
    extent = tirx.const(extent, "int64") if isinstance(extent, int) else extent
    zero = tirx.const(0, "int64")
    thread = tirx.IterVar(tvm.ir.Range(zero, extent), _variable(tag), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(variable, zero, extent, tirx.ForKind.THREAD_BINDING, body, thread)


def _runs_in_order(function: tirx.PrimFunc) -> bool:
    """Whether the function is scheduled for a processor. The CUDA target's own kernels do not have the attribute
    ``s_tir``, since they are not in the form of TVM's schedules."""
    return bool(function.attrs.get("tirx.is_scheduled")) and bool(function.attrs.get("s_tir"))
