"""The default schedule of generic kernels on a CPU.

Producers that only move or map elements are inlined into their consumer. Then all spatial loops but the innermost of
every remaining block are marked as one parallel loop (see :mod:`.guard_parallel`). The innermost stays a plain loop
over consecutive addresses, which LLVM vectorises. Reductions are never split, so the order of a sum does not depend on
the number of threads.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import tvm
from tvm import s_tir, tirx

from moec.targets.tvm.kernels.te_kernels import checking, without_checks

GENERIC = "moec.generic"
"""Attribute of kernels under the default schedule."""
COLLAPSED = "moec.collapsed"
"""Annotation of a loop that belongs to the parallel loop around it."""
WORK = "moec.work"
"""Annotation of a parallel loop of a kernel that is not generic: the elements that one iteration computes."""
PARALLEL_THRESHOLD = 16384
"""Elements from which on a loop runs in parallel; fewer take less time than the start of a parallel region."""


@tvm.ir.transform.module_pass(opt_level=0, name="ScheduleGenericKernels")
class ScheduleGenericKernels:
    """Schedule every PrimFunc that does not come finished from a target or a serial kernel."""

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for symbol, function in module.functions.items():
            if isinstance(function, tirx.PrimFunc) and not function.attrs.get("tirx.is_scheduled"):
                module[symbol] = scheduled(function)
        return module


def scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function under the default schedule."""
    function, assertions = without_checks(function)
    schedule = s_tir.Schedule(tvm.IRModule({"main": function}))
    root = schedule.get_sblock("root")
    if not any(_turns_never(schedule, block) for block in schedule.get_child_blocks(root)):
        _inline_producers(schedule, root)
    for block in schedule.get_child_blocks(root):
        _parallelize(schedule, block)
    return checking(schedule.mod["main"].with_attrs({"tirx.is_scheduled": True, GENERIC: True}), assertions)


def _inline_producers(schedule: s_tir.Schedule, root: s_tir.schedule.SBlockRV) -> None:
    outputs = {schedule.get(block).name_hint for block in schedule.get_output_blocks(root)}
    for block in schedule.get_child_blocks(root):
        if schedule.get(block).name_hint in outputs or _is_reduction(schedule, block):
            continue
        # A producer of which TVM cannot prove that it is written where it is read stays as it is.
        with contextlib.suppress(s_tir.ScheduleError):
            if len(schedule.get_consumers(block)):
                schedule.compute_inline(block)


def _turns_never(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    """Whether a size of the block is zero. TVM can inline nothing then, because no write matches the reads."""
    extents = (schedule.get(loop).extent for loop in schedule.get_loops(block))
    return any(isinstance(extent, tirx.IntImm) and int(extent) == 0 for extent in extents)


def _is_reduction(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    return any(variable.iter_type != tirx.IterVar.DataPar for variable in schedule.get(block).iter_vars)


def _parallelize(schedule: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> None:
    loops = schedule.get_loops(block)
    kinds = [variable.iter_type for variable in schedule.get(block).iter_vars]
    if len(loops) != len(kinds):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    reduced = [loop for loop in loops if loop not in spatial]
    extents = [schedule.get(loop).extent for loop in loops]
    if spatial and not _is_small(extents):
        with contextlib.suppress(s_tir.ScheduleError):
            _parallelize_loops(schedule, spatial, bool(reduced))
    if reduced:
        # The initial value in a loop of its own: inside, it would never be written where the reduced size is 0.
        schedule.decompose_reduction(block, reduced[0])


def _parallelize_loops(schedule: s_tir.Schedule, spatial: list[Any], reduced: bool) -> None:
    outer = spatial[:-1] if len(spatial) > 1 and not reduced else spatial
    # A loop of one turn disappears, and with it what was said about it.
    turning = [loop for loop in outer if not _is_one(schedule.get(loop).extent)] or outer[:1]
    schedule.parallel(turning[0])
    for loop in turning[1:]:
        schedule.annotate(loop, COLLAPSED, 1)


def _is_small(extents: list[tirx.Expr]) -> bool:
    static = [int(extent) for extent in extents if isinstance(extent, tirx.IntImm)]
    return len(static) == len(extents) and math.prod(static) < PARALLEL_THRESHOLD


def _is_one(extent: tirx.Expr) -> bool:
    return isinstance(extent, tirx.IntImm) and int(extent) == 1
