"""Check the sizes of a kernel's arguments, and not their types.

TVM's calling convention checks nine more facts about each tensor: rank, type, device, strides and so on. The virtual
machine guarantees these: it checks the parameters of ``main`` when it is called, and allocates every other tensor
itself. Their checks are most of the code of a small kernel, and generating them takes a third of its time. Sizes that
must agree are known only when the kernel runs, so their checks stay::

    assert x.ndim == 2, ("Mismatched ", "x", ".ndim on argument #", "0", ...)
    assert x.shape[0] == z.shape[0], ("Mismatched ", "z.shape[0]", " on argument #", "1", ...)
        ->
    assert x.shape[0] == z.shape[0], "Mismatched z.shape[0] on argument #1..."
"""

from __future__ import annotations

import functools
from collections.abc import Set
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import StringImm

_STRUCT_FIELD = "tirx.tvm_struct_get"
_SHAPE = 2
"""TVM's number for the field of a tensor that points to its sizes."""
_NOTHING = tirx.Evaluate(0)


@tirx.transform.prim_func_pass(opt_level=0, name="TrustArguments")
class TrustArguments:
    """Runs behind MakePackedAPI."""

    def transform_function(
        self, function: tirx.PrimFunc, _module: tvm.IRModule, _context: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        shapes: set[Any] = set()

        def note(binding: tirx.Bind) -> None:
            if _is_shape(binding.value):
                shapes.add(binding.var)

        tvm_ffi.structural_walk(function.body, [(tirx.Bind, note)])
        trust = functools.partial(_trusted, shapes)
        rules = [(tirx.AssertStmt, trust), (tirx.IfThenElse, _without_empty_branch)]
        return function.with_body(tvm_ffi.structural_map(function.body, rules))


def _is_shape(value: Any) -> bool:
    """Whether the value is the address of the sizes of a tensor."""
    is_field = isinstance(value, tvm.ir.Call) and value.op.same_as(tvm.ir.Op.get(_STRUCT_FIELD))
    return is_field and int(value.args[2]) == _SHAPE


def _trusted(shapes: Set[Any], check: tirx.AssertStmt) -> tirx.Stmt:
    """The check itself where a kernel asks for it, with its message in one part if it reads a size, else nothing.
    ``shapes``: the variables that are addresses of sizes."""
    if len(check.message_parts) == 1:  # a kernel's own requirement
        return check
    reads: list[Any] = []
    tvm_ffi.structural_walk(check.condition, [(tvm.ir.Var, reads.append)])
    if shapes.isdisjoint(reads):
        return _NOTHING
    message = "".join(part.value for part in check.message_parts)
    return tirx.AssertStmt(check.condition, check.error_kind, [StringImm(message)])


def _without_empty_branch(branch: tirx.IfThenElse) -> tirx.Stmt:
    """Nothing in place of a branch that checked strides only."""
    return _NOTHING if branch.else_case is None and branch.then_case.same_as(_NOTHING) else branch
