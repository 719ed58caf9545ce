"""Passes that keep the variables of kernels in the text of TIR and CUDA C.

Phases that simplify indices replace a variable by the value that it is bound to, so the text would contain
``thread & 31`` wherever a kernel says ``lane``. To prevent that, values are hidden while such phases run, in calls of a
function that the phases do not know.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

_CURTAIN = "moec_value"
"""The function whose call hides a value. It does not exist, and no call of it is left when code is generated."""
_INDEX_TYPES = ("int32", "int64")


@tirx.transform.prim_func_pass(opt_level=0, name="HideBoundValues")
class HideBoundValues:
    """Hide the values of bound integers: ``lane = thread % 32`` becomes ``lane = moec_value(thread % 32)``.

    ``of_every_type``: hide those of floats, too."""

    def __init__(self, *, of_every_type: bool = False) -> None:
        self._of_every_type = of_every_type

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        def hide(binding: tirx.Bind) -> tirx.Bind:
            kind = str(binding.var.ty.dtype) if isinstance(binding.var.ty, tvm.ir.PrimType) else ""
            hides = bool(kind) if self._of_every_type else kind in _INDEX_TYPES
            if not hides or _hidden(binding.value) is not None:
                return binding
            return tirx.Bind(binding.var, tirx.call_extern(kind, _CURTAIN, binding.value), binding.span)

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Bind, hide)]))


@tirx.transform.prim_func_pass(opt_level=0, name="ShowBoundValues")
class ShowBoundValues:
    """Undo :class:`HideBoundValues`."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        def show(binding: tirx.Bind) -> tirx.Bind:
            hidden = _hidden(binding.value)
            return binding if hidden is None else tirx.Bind(binding.var, hidden, binding.span)

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Bind, show)]))


def _hidden(value: tvm.ir.Expr) -> tvm.ir.Expr | None:
    """The value that a call hides; None if ``value`` is not such a call."""
    if not isinstance(value, tvm.ir.Call) or not value.args or not isinstance(value.args[0], tvm.ir.StringImm):
        return None
    return value.args[1] if value.args[0].value == _CURTAIN else None
