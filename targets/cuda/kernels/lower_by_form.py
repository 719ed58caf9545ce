"""The two forms of kernels in one module, each lowered by its own phases.

Scheduled kernels (``s_tir=True``: what Relax makes and dlight binds to threads) leave barriers and shared memory to
TVM's phases. Kernels written for threads (``T.device_entry``) say both themselves; a barrier that a phase added could
stand where not all threads come by. TVM marks the first with the attribute ``s_tir``.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx

from moec.targets.cuda.kernels.keep_names import HideBoundValues, ShowBoundValues


def thread_kernel_phases() -> list[tvm.transform.Pass]:
    """From a kernel written for threads to one function that holds the host's and the device's part.

    TVM's own list also eliminates common subexpressions; nvcc does that, and the text would be full of variables that
    mean nothing.
    """
    loops = tirx.transform
    return [
        HideBoundValues(),
        # Indices of blocks, warps and threads become those of CUDA; layouts of buffers become offsets.
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
    """Runs ``scheduled_phases`` on scheduled kernels and :func:`thread_kernel_phases` on those written for threads."""

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
