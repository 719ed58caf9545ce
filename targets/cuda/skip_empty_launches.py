"""Nothing is launched for nothing: CUDA refuses a grid without blocks, which sizes of zero ask for.

1. A launch whose numbers of blocks and threads depend on sizes stands behind a test that none of them is zero.

::

    call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
        ->
    if T > 0:
        call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
"""

from __future__ import annotations

import functools

import tvm
import tvm_ffi
from tvm import tirx

_LAUNCH = "tirx.call_ffi_kernel"
_EXTENTS = ("blockIdx.", "threadIdx.")


@tirx.transform.prim_func_pass(opt_level=0, name="SkipEmptyLaunches")
class SkipEmptyLaunches:
    """Applies to the host's functions, behind SplitHostDevice."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Evaluate, _guarded)]))


def _guarded(statement: tirx.Evaluate) -> tirx.Stmt:
    call = statement.value
    if not isinstance(call, tvm.ir.Call) or call.op != tvm.ir.Op.get(_LAUNCH):
        return statement
    tags = list(call.attrs.launch_params)
    extents = dict(zip(tags, list(call.args)[len(call.args) - len(tags) :], strict=True))
    dynamic = [
        extent for tag, extent in extents.items() if tag.startswith(_EXTENTS) and not isinstance(extent, tirx.IntImm)
    ]
    if not dynamic:
        return statement
    return tirx.IfThenElse(functools.reduce(tirx.all, [extent > 0 for extent in dynamic]), statement, None)
