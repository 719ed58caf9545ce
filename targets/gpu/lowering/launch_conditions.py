"""Conditions under which the host launches a kernel: only if there is work, and no other kernel does it.

1. A launch whose numbers of blocks or threads depend on sizes is guarded by a test that none of them is zero, since
   CUDA rejects a grid without blocks.
2. A kernel with the attribute :data:`LAUNCH_IF`, which :func:`launch_if` sets, is launched only if a size of one of its
   tensors lies in a range. If several kernels can compute a result, the host picks one by the size that way. With
   :func:`launch_between` the bounds are arguments of each call.
3. A launch of several kernels (:mod:`.side_by_side`) is for sizes for which all are launched (:func:`launch_up_to`).
   For others a kernel of it is launched alone (:func:`launch_beyond`).

::

    # "moec.launch_if": {"parameter": 0, "axis": 0, "least": 0, "most": 16}
    call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
        ->
    if T > 0 and T <= 16:
        call_ffi_kernel("exp_kernel", y, x, T, T, 256, launch_params=["blockIdx.x", "threadIdx.x"])
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

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
    bounds = {"least": sizes.least, "most": NO_LIMIT if sizes.most is None else sizes.most}
    asked = {"parameter": parameter, "axis": axis, "expected": bounds, **bounds, "reached": [], "missed": []}
    return kernel.with_attr(LAUNCH_IF, asked)


def launch_between(
    kernel: tirx.PrimFunc, parameter: int, reached: Sequence[Crossover], missed: Sequence[Crossover]
) -> tirx.PrimFunc:
    """The kernel, launched only if the first size of the parameter with that index is at least each of ``reached`` and
    below each of ``missed``. The returned kernel takes these bounds, int64, as additional first parameters."""
    numbers = [tirx.Var("reached", "int64") for _ in reached] + [tirx.Var("missed", "int64") for _ in missed]
    if not numbers:
        return kernel
    expected = {
        "least": max((crossover.estimate for crossover in reached), default=0),
        "most": min((crossover.estimate - 1 for crossover in missed), default=NO_LIMIT),
    }
    asked = {
        "parameter": parameter + len(numbers),
        "axis": 0,
        "expected": expected,
        "least": 0,
        "most": NO_LIMIT,
        "reached": [NO_LIMIT if crossover.highest is None else crossover.highest for crossover in reached],
        "missed": [NO_LIMIT if crossover.highest is None else crossover.highest for crossover in missed],
    }
    return _taking(kernel, numbers).with_attrs({LAUNCH_IF: asked, HOST_NUMBERS: len(numbers)})


def _taking(kernel: tirx.PrimFunc, numbers: Sequence[tirx.Var]) -> tirx.PrimFunc:
    return tirx.PrimFunc([*numbers, *kernel.params], kernel.body, kernel.ret_type, kernel.attrs)


def launch_up_to(kernel: tirx.PrimFunc, most: int) -> tirx.PrimFunc:
    """The kernel, launched only for sizes up to ``most`` of those for which it is launched."""
    return _narrowed(kernel, {"most": most})


def launch_beyond(kernel: tirx.PrimFunc, shared: tirx.PrimFunc) -> tirx.PrimFunc | None:
    """The kernel, launched only for sizes for which ``shared``, a launch of it with others, is not made; None if there
    are none. Both are for sizes from 0 on, ``shared`` for those below a number. A kernel without such a number takes it
    as an additional first parameter."""
    asked, limits = kernel.attrs[LAUNCH_IF], shared.attrs[LAUNCH_IF]
    first = int(limits["most"]) + 1
    if len(asked["missed"]):
        return _narrowed(kernel, {"least": first}) if first <= int(asked["most"]) else None
    changed = {
        **asked,
        "parameter": int(asked["parameter"]) + 1,
        "expected": {**asked["expected"], "least": int(limits["expected"]["most"]) + 1},
        "reached": [min(int(limits["missed"][0]), first)],
    }
    return _taking(kernel, [tirx.Var("reached", "int64")]).with_attrs({LAUNCH_IF: changed, HOST_NUMBERS: 1})


def _narrowed(kernel: tirx.PrimFunc, bounds: Mapping[str, int]) -> tirx.PrimFunc:
    """The kernel, launched only for sizes from ``least`` or to ``most``, too."""
    narrower, asked = {"least": max, "most": min}, kernel.attrs[LAUNCH_IF]

    def narrowed(before: Mapping[str, Any]) -> dict[str, int]:
        return {name: narrower[name](int(before[name]), bound) for name, bound in bounds.items()}

    expected = {**asked["expected"], **narrowed(asked["expected"])}
    return kernel.with_attr(LAUNCH_IF, {**asked, **narrowed(asked), "expected": expected})


@dataclasses.dataclass(frozen=True)
class LaunchSizes:
    """All that decides in a call whether a kernel is launched: whether ``size`` is from ``least`` to ``most``, at least
    each of the first ``numbers`` and below each of the others. ``limits``: upper limits of those of both kinds."""

    size: tvm_ffi.StructuralKey
    least: int
    most: int
    limits: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    numbers: tuple[Any, ...] = ()

    @staticmethod
    def of(kernel: tirx.PrimFunc, arguments: Sequence[Any], results: Sequence[Any]) -> LaunchSizes | None:
        """The sizes of a call; None if the kernel is launched for all. ``results``: the types of its results."""
        asked = kernel.attrs.get(LAUNCH_IF)
        if asked is None:
            return None
        types = [*(argument.ty for argument in arguments), *results]
        size = types[int(asked["parameter"])].shape[int(asked["axis"])]
        reached, missed = (tuple(map(int, asked[name])) for name in ("reached", "missed"))
        numbers = tuple(arguments)[: len(reached) + len(missed)]
        return LaunchSizes(
            tvm_ffi.StructuralKey(size), int(asked["least"]), int(asked["most"]), (reached, missed), numbers
        )

    def meet(self, other: LaunchSizes) -> bool:
        """Whether kernels share a launch: if they are launched for the same sizes, or one of them below a number and
        the other up to a constant. Numbers are the first arguments of a launch, so one kernel alone may have some."""
        if self == other:
            return not self.numbers
        both = (self, other)
        is_for_few = all(each.least == 0 and not each.limits[0] and len(each.numbers) <= 1 for each in both)
        return is_for_few and self.size == other.size and len(self.numbers) + len(other.numbers) == 1


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
    bounds are arguments. These have upper limits, NO_LIMIT for none."""
    asked = function.attrs.get(LAUNCH_IF) if function.attrs else None
    if asked is None:
        return []
    size = function.params[int(asked["parameter"])].shape[int(asked["axis"])]
    reached, missed = ([*map(int, asked[name])] for name in ("reached", "missed"))
    bounds = [
        number if limit == NO_LIMIT else tirx.min(number, tirx.IntImm("int64", limit))
        for number, limit in zip(function.params, [*reached, *missed], strict=False)
    ]
    wide, least, most = size.astype("int64"), int(asked["least"]), int(asked["most"])
    return [
        *(wide >= bound for bound in bounds[: len(reached)]),
        *(wide < bound for bound in bounds[len(reached) :]),
        *([size >= least] if least > 0 else []),
        *([size <= most] if most < NO_LIMIT else []),
    ]
