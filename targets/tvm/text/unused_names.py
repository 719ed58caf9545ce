"""Removal of names that nothing uses, so that every name in a kernel's text says something."""

from __future__ import annotations

import collections

import tvm
import tvm_ffi
from tvm import tirx

_READS = 2
"""The highest kind of TVM's effects that leaves memory as it is."""
_WITHOUT_EFFECT = ("tirx.cuda.__shfl_sync",)
"""Calls without an effect, although TVM assumes one: exchanges between the threads of a warp."""


@tirx.transform.prim_func_pass(opt_level=0, name="DropUnusedNames")
class DropUnusedNames:
    """Remove bindings of variables that nothing uses, except where computing the value has an effect."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        unused = _unused(function.body)
        if not unused:
            return function

        def without(bind: tirx.Bind) -> tirx.Stmt:
            return tirx.Evaluate(0, bind.span) if bind.var in unused else bind

        return function.with_body(tvm_ffi.structural_map(function.body, [(tirx.Bind, without)]))


def _unused(body: tirx.Stmt) -> set[tvm.ir.Var]:
    """The variables that stand only where they are bound, or in values of such variables."""
    times: collections.Counter[tvm.ir.Var] = collections.Counter()
    bound: list[tirx.Bind] = []
    tvm_ffi.structural_walk(body, [(tvm.ir.Var, lambda variable: times.update((variable,))), (tirx.Bind, bound.append)])
    unused: set[tvm.ir.Var] = set()
    for bind in reversed(bound):
        if times[bind.var] == 1 and not _has_effect(bind.value):
            unused.add(bind.var)
            tvm_ffi.structural_walk(bind.value, [(tvm.ir.Var, lambda variable: times.subtract((variable,)))])
    return unused


def _has_effect(value: tvm.ir.Expr) -> bool:
    effects: list[bool] = []

    def note(call: tvm.ir.Call) -> None:
        kind = call.op.get_attr("TCallEffectKind") if isinstance(call.op, tvm.ir.Op) else None
        named = getattr(call.op, "name", "") in _WITHOUT_EFFECT
        effects.append(not named and (kind is None or kind > _READS))

    tvm_ffi.structural_walk(value, [(tvm.ir.Call, note)])
    return any(effects)
