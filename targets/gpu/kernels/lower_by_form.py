"""Lowering of a module with both forms of kernels, each by its own phases.

For scheduled kernels, which Relax makes and dlight binds to threads, TVM's phases insert barriers and allocate shared
memory. Kernels written thread by thread (``T.device_entry``) contain both themselves; a barrier that a phase inserts
might not be reached by all threads. TVM marks scheduled kernels with the attribute ``s_tir``.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx

from moec.targets.tvm.text.keep_names import HideBoundValues, ShowBoundValues


def thread_kernel_phases() -> list[tvm.transform.Pass]:
    """The phases that lower a kernel written thread by thread to one function, which still holds the parts of host and
    device.

    TVM's own list also eliminates common subexpressions. It is left out here because nvcc does it anyway, and the text
    would be full of meaningless variables.
    """
    loops = tirx.transform
    return [
        HideBoundValues(),
        # Replace indices of blocks, warps and threads by CUDA's, and layouts of buffers by offsets.
        loops.LowerTIRx(),
        s_tir.transform.UnifyThreadBinding(),
        loops.LowerTIRxOpaque(),
        HideBoundValues(),
        loops.FlattenBuffer(),
        loops.BF16ComputeLegalize(),
        loops.NarrowDataType(32),
        loops.VectorizeLoop(True),
        loops.UnrollLoop(),
        loops.StmtSimplify(),
        ShowBoundValues(),
        loops.FP8ComputeLegalize(),
        loops.VerifyMemory(),
        loops.AnnotateEntryFunc(),
    ]


@tvm.ir.transform.module_pass(opt_level=0, name="LowerByForm")
class LowerByForm:
    """Run ``scheduled_phases`` on scheduled kernels and :func:`thread_kernel_phases` on those written thread by
    thread."""

    def __init__(self, scheduled_phases: Sequence[tvm.transform.Pass]) -> None:
        self._scheduled_phases = list(scheduled_phases)

    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        forms: dict[bool, dict[tvm.ir.GlobalVar, tirx.PrimFunc]] = {True: {}, False: {}}
        for symbol, function in module.functions.items():
            forms[bool(function.attrs.get("s_tir", False))][symbol] = function
        sequence = tvm.ir.transform.Sequential
        lowered = sequence(self._scheduled_phases)(tvm.IRModule(forms[True], attrs=module.attrs))
        lowered.update(sequence(thread_kernel_phases())(tvm.IRModule(forms[False], attrs=module.attrs)))
        return lowered
