"""Keeps the variables of kernels in the text of CUDA C.

Phases that simplify indices put in place of a variable what it is bound to, and the text would spell ``thread & 31``
wherever a kernel says ``lane``. So the values are hidden while such phases run: behind a call that they know nothing
about.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

_CURTAIN = "moec_value"
"""The function whose call hides a value. No such function exists; no call of it is left when code is generated."""
_INDEX_TYPES = ("int32", "int64")


@tirx.transform.prim_func_pass(opt_level=0, name="HideBoundValues")
class HideBoundValues:
    """``lane = thread % 32`` becomes ``lane = moec_value(thread % 32)``."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        def hide(binding: tirx.Bind) -> tirx.Bind:
            kind = str(binding.var.ty.dtype) if isinstance(binding.var.ty, tvm.ir.PrimType) else ""
            if kind not in _INDEX_TYPES or _hidden(binding.value) is not None:
                return binding
            return tirx.Bind(binding.var, tirx.call_extern(kind, _CURTAIN, binding.value))

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Bind, hide)]))


@tirx.transform.prim_func_pass(opt_level=0, name="ShowBoundValues")
class ShowBoundValues:
    """Undoes :class:`HideBoundValues`."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        def show(binding: tirx.Bind) -> tirx.Bind:
            hidden = _hidden(binding.value)
            return binding if hidden is None else tirx.Bind(binding.var, hidden)

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Bind, show)]))


def _hidden(value: tvm.ir.Expr) -> tvm.ir.Expr | None:
    """What is behind the curtain; None where there is none."""
    if not isinstance(value, tvm.ir.Call) or not value.args or not isinstance(value.args[0], tvm.ir.StringImm):
        return None
    return value.args[1] if value.args[0].value == _CURTAIN else None
