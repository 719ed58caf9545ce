"""Bound the bytes of an allocation where their number would overflow an integer.

Sizes that a program is given or computes, such as [2**40, 2**40], may multiply beyond 64 bits, and the product modulo
2**64 would be allocated: too little. Such a product becomes a number of bytes that no machine has.

::

    storage = memory.alloc_storage(R.shape([N * M * 4]), ...)
        ->
    storage = memory.alloc_storage(R.shape([Select(float64(N) * float64(M) * 4.0 < 2.0**56, N * M * 4, 2**56)]), ...)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

ALLOCATE = "relax.memory.alloc_storage"
TOO_MUCH = 1 << 56  # the runtime counts bits
_OPERATORS = {tirx.Mul: lambda a, b: a * b, tirx.Add: lambda a, b: a + b, tirx.Sub: lambda a, b: a - b}


@tvm.ir.transform.module_pass(opt_level=0, name="BoundStorage")
class BoundStorage:
    def transform_module(self, module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        return with_sizes(module, lambda size: bounded(size, TOO_MUCH))


def with_sizes(module: tvm.IRModule, change: Callable[[Any], tirx.Expr]) -> tvm.IRModule:
    """The module in which each number of bytes that is known only at run time is what ``change`` makes of it."""

    def changed(call: tvm.ir.Call) -> tvm.ir.Call:
        if call.op != tvm.ir.Op.get(ALLOCATE):
            return call
        shape, *rest = call.args
        (size,) = shape.values
        if isinstance(size, tirx.IntImm):
            return call
        return relax.Call(call.op, [relax.ShapeExpr([change(size)]), *rest], call.attrs, call.ty_args)

    module["main"] = tvm_ffi.structural_map(module["main"], [(tvm.ir.Call, changed)])
    return module


def bounded(size: Any, limit: int) -> tirx.Expr:
    """The size, or ``limit`` where that is less, also where the size overflows 64 bits."""
    fits = as_float(size) < tirx.const(float(limit), "float64")
    return tirx.Select(fits, size, tirx.IntImm("int64", limit))


def as_float(size: Any) -> tirx.Expr:
    """The number, computed in float64, where it cannot overflow."""
    operator = _OPERATORS.get(type(size))
    if operator is not None:
        return operator(as_float(size.a), as_float(size.b))
    return size.astype("float64")
