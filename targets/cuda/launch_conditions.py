"""When a kernel is launched: not for nothing, and not where another does the work.

1. A launch whose numbers of blocks and threads depend on sizes stands behind a test that none of them is zero: CUDA
   refuses a grid without blocks.
2. A kernel with the attribute :data:`LAUNCH_IF`, which :func:`launch_if` sets, is launched only if a size of one of its
   tensors lies in a range: where several kernels can compute a result, the host picks one by the sizes it has. The
   bounds of :func:`launch_between` are numbers that the host gets with each call.

::

    # "moec.launch_if": {"parameter": 0, "axis": 0, "least": 0, "most": 16}
    call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
        ->
    if T > 0 and T <= 16:
        call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from moec.runtime.device_module import LAUNCH_FLAGS
from moec.targets.base import SizeRange
from moec.targets.tvm.crossover import Crossover
from moec.targets.tvm.records import HOST_NUMBERS

LAUNCH_IF = "moec.launch_if"
NO_LIMIT = 2**31 - 1
"""Stands in the attribute where there is none."""

_LAUNCH = "tirx.call_ffi_kernel"
_EXTENTS = ("blockIdx.", "threadIdx.")


def launch_if(kernel: tirx.PrimFunc, parameter: int, axis: int, sizes: SizeRange) -> tirx.PrimFunc:
    """The kernel, to be launched only if the size of that parameter's axis is one of ``sizes``."""
    most = NO_LIMIT if sizes.most is None else sizes.most
    return kernel.with_attr(LAUNCH_IF, {"parameter": parameter, "axis": axis, "least": sizes.least, "most": most})


def launch_between(
    kernel: tirx.PrimFunc, parameter: int, reached: Sequence[Crossover], missed: Sequence[Crossover]
) -> tirx.PrimFunc:
    """The kernel, to be launched only if the first size of that parameter is at least each of ``reached`` and below
    each of ``missed``. These numbers, int64, are its first parameters now."""
    numbers = [tirx.Var("reached", "int64") for _ in reached] + [tirx.Var("missed", "int64") for _ in missed]
    if not numbers:
        return kernel
    asked = {
        "parameter": parameter + len(numbers),
        "axis": 0,
        "least": max((crossover.estimate for crossover in reached), default=0),
        "most": min((crossover.estimate - 1 for crossover in missed), default=NO_LIMIT),
        "reached": [NO_LIMIT if crossover.highest is None else crossover.highest for crossover in reached],
        "missed": [NO_LIMIT if crossover.highest is None else crossover.highest for crossover in missed],
    }
    taking = tirx.PrimFunc([*numbers, *kernel.params], kernel.body, kernel.ret_type, kernel.attrs)
    return taking.with_attrs({LAUNCH_IF: asked, HOST_NUMBERS: len(numbers)})


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


def launch_numbers(call: tvm.ir.Call) -> dict[str, Any]:
    """The numbers of blocks, threads and bytes of a launch by their tags, which stand behind the kernel's arguments."""
    tags = [str(tag) for tag in call.attrs.launch_params if tag not in LAUNCH_FLAGS]
    return dict(zip(tags, list(call.args)[len(call.args) - len(tags) :], strict=True))


def _size_conditions(call: tvm.ir.Call) -> list[Any]:
    """That no number of blocks or threads is zero."""
    return [
        extent > 0
        for tag, extent in launch_numbers(call).items()
        if tag.startswith(_EXTENTS) and not (isinstance(extent, tirx.IntImm) and int(extent) > 0)
    ]


def _range_condition(function: tirx.PrimFunc) -> list[Any]:
    """That the size is in the range which the function's attribute and first parameters give."""
    asked = function.attrs.get(LAUNCH_IF) if function.attrs else None
    if asked is None:
        return []
    size = function.params[int(asked["parameter"])].shape[int(asked["axis"])]
    if "reached" in asked:
        return _number_conditions(function, size, [*map(int, asked["reached"])], [*map(int, asked["missed"])])
    least, most = int(asked["least"]), int(asked["most"])
    conditions = [size >= least] if least > 0 else []
    return [*conditions, size <= most] if most < NO_LIMIT else conditions


def _number_conditions(function: tirx.PrimFunc, size: Any, reached: list[int], missed: list[int]) -> list[Any]:
    """That the size reaches the first of the function's parameters and misses the ones behind them."""
    highest = [*reached, *missed]
    numbers = list(function.params)[: len(highest)]
    bounds = [
        number if limit == NO_LIMIT else tirx.min(number, tirx.IntImm("int64", limit))
        for number, limit in zip(numbers, highest, strict=True)
    ]
    size = size.astype("int64")
    return [
        *(size >= bound for bound in bounds[: len(reached)]),
        *(size < bound for bound in bounds[len(reached) :]),
    ]
