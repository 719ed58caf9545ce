"""Conditions under which the host launches a kernel: only if there is work, and no other kernel does it.

1. A launch whose numbers of blocks or threads depend on sizes is guarded by a test that none of them is zero, since
   CUDA rejects a grid without blocks.
2. A kernel with the attribute :data:`LAUNCH_IF`, which :func:`launch_if` sets, is launched only if a size of one of its
   tensors lies in a range. If several kernels can compute a result, the host picks one by the size that way. With
   :func:`launch_between` the bounds are arguments of each call.

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
from tvm import relax, tirx

from moec.runtime.device_module import LAUNCH_FLAGS
from moec.targets.base import SizeRange
from moec.targets.tvm.kernels.crossover import Crossover
from moec.targets.tvm.phases.records import HOST_NUMBERS

LAUNCH_IF = "moec.launch_if"
NO_LIMIT = 2**31 - 1
"""The value of a bound in the attribute that means no limit."""

_LAUNCH = "tirx.call_ffi_kernel"
_EXTENTS = ("blockIdx.", "threadIdx.")


def launch_if(kernel: tirx.PrimFunc, parameter: int, axis: int, sizes: SizeRange) -> tirx.PrimFunc:
    """The kernel, launched only if the size of ``axis`` of the parameter with that index is one of ``sizes``."""
    most = NO_LIMIT if sizes.most is None else sizes.most
    return kernel.with_attr(LAUNCH_IF, {"parameter": parameter, "axis": axis, "least": sizes.least, "most": most})


def launch_between(
    kernel: tirx.PrimFunc, parameter: int, reached: Sequence[Crossover], missed: Sequence[Crossover]
) -> tirx.PrimFunc:
    """The kernel, launched only if the first size of the parameter with that index is at least each of ``reached`` and
    below each of ``missed``. The returned kernel takes these bounds, int64, as additional first parameters."""
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


def launched_sizes(kernel: tirx.PrimFunc, types: Sequence[relax.TensorType]) -> tuple[Any, ...] | None:
    """All that decides whether a kernel is launched, to compare with others'; None if it is launched for all sizes.
    ``types``: of its arguments and results in a call."""
    asked = kernel.attrs.get(LAUNCH_IF)
    if asked is None:
        return None
    size = types[int(asked["parameter"])].shape[int(asked["axis"])]
    return int(asked["least"]), int(asked["most"]), tvm_ffi.StructuralKey(size)


@tirx.transform.prim_func_pass(opt_level=0, name="ApplyLaunchConditions")
class ApplyLaunchConditions:
    """Guard the launches in functions of the host. Runs after SplitHostDevice."""

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
    """The numbers of blocks, threads and bytes of a launch by their tags. In the call, they follow the kernel's
    arguments."""
    tags = [str(tag) for tag in call.attrs.launch_params if tag not in LAUNCH_FLAGS]
    return dict(zip(tags, list(call.args)[len(call.args) - len(tags) :], strict=True))


def _size_conditions(call: tvm.ir.Call) -> list[Any]:
    """The conditions that no number of blocks or threads is zero; constants need none."""
    return [
        extent > 0
        for tag, extent in launch_numbers(call).items()
        if tag.startswith(_EXTENTS) and not (isinstance(extent, tirx.IntImm) and int(extent) > 0)
    ]


def _range_condition(function: tirx.PrimFunc) -> list[Any]:
    """The conditions that the size lies in the range given by the function's attribute, and by its first parameters if
    the bounds are arguments."""
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
    """The conditions that the size is at least each of the function's first parameters, and below each of the next.
    ``reached`` and ``missed``: upper limits of these parameters, NO_LIMIT for none."""
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
