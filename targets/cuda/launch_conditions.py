"""When a kernel is launched: not for nothing, and not where another does the work.

1. A launch whose numbers of blocks and threads depend on sizes stands behind a test that none of them is zero: CUDA
   refuses a grid without blocks.
2. A kernel with the attribute :data:`LAUNCH_IF`, which :func:`launch_if` sets, is launched only if a size of one of its
   tensors lies in a range: where several kernels can compute a result, the host picks one by the sizes it has.

::

    # "moec.launch_if": {"parameter": 0, "axis": 0, "least": 0, "most": 16}
    call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
        ->
    if T > 0 and T <= 16:
        call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
"""

from __future__ import annotations

import functools
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

LAUNCH_IF = "moec.launch_if"
NO_LIMIT = 2**31 - 1

_LAUNCH = "tirx.call_ffi_kernel"
_EXTENTS = ("blockIdx.", "threadIdx.")


def launch_if(
    kernel: tirx.PrimFunc, parameter: int, axis: int, *, least: int = 0, most: int = NO_LIMIT
) -> tirx.PrimFunc:
    """The kernel, to be launched only if the size of that parameter's axis is from ``least`` to ``most``."""
    return kernel.with_attr(LAUNCH_IF, {"parameter": parameter, "axis": axis, "least": least, "most": most})


@tirx.transform.prim_func_pass(opt_level=0, name="ApplyLaunchConditions")
class ApplyLaunchConditions:
    """Applies to the host's functions, behind SplitHostDevice."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        asked = _range_condition(function)

        def guarded(statement: tirx.Evaluate) -> tirx.Stmt:
            call = statement.value
            if not isinstance(call, tvm.ir.Call) or call.op != tvm.ir.Op.get(_LAUNCH):
                return statement
            conditions = [*_size_conditions(call), *asked]
            return tirx.IfThenElse(functools.reduce(tirx.all, conditions), statement, None) if conditions else statement

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Evaluate, guarded)]))


def _size_conditions(call: tvm.ir.Call) -> list[Any]:
    """That no number of blocks or threads is zero."""
    tags = list(call.attrs.launch_params)
    extents = zip(tags, list(call.args)[len(call.args) - len(tags) :], strict=True)
    return [extent > 0 for tag, extent in extents if tag.startswith(_EXTENTS) and not isinstance(extent, tirx.IntImm)]


def _range_condition(function: tirx.PrimFunc) -> list[Any]:
    """That the size is in the range the function's attribute gives."""
    asked = function.attrs.get(LAUNCH_IF) if function.attrs else None
    if asked is None:
        return []
    size = function.params[int(asked["parameter"])].shape[int(asked["axis"])]
    least, most = int(asked["least"]), int(asked["most"])
    conditions = [size >= least] if least > 0 else []
    return [*conditions, size <= most] if most < NO_LIMIT else conditions
